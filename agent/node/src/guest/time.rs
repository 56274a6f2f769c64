//! Times that a guest tells, by the host's clock.
//!
//! A guest's clock is set once, when its pod is set up, and runs on by itself: it is behind by the time that the message took, and later by
//! whatever the host's clock was corrected. What is known to lie between a question and its answer is put there, and the rest moves with it.

use hartpod_proto::pod::v1 as pod;

/// Moves the times of `state`: to a start that is known already, or else to one within the question and `now`.
pub(crate) fn to_host_time(state: &mut pod::ContainerState, (asked_at, started_at): (i64, i64), now: i64) {
    if state.started_at == 0 {
        state.finished_at = state.finished_at.min(now);
        return;
    }
    let start = if started_at != 0 { started_at } else { state.started_at.max(asked_at).min(now) };
    let shift = start.saturating_sub(state.started_at);
    state.started_at = start;
    if state.finished_at != 0 {
        state.finished_at = state.finished_at.saturating_add(shift).min(now).max(start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(told: (i64, i64), known: (i64, i64), now: i64) -> (i64, i64) {
        let mut state = pod::ContainerState { started_at: told.0, finished_at: told.1, ..Default::default() };
        to_host_time(&mut state, known, now);
        (state.started_at, state.finished_at)
    }

    #[test]
    fn a_clock_that_is_off_makes_no_container_start_before_it_was_asked_for() {
        assert_eq!(moved((105, 0), (100, 0), 110), (105, 0), "it is right");
        assert_eq!(moved((90, 0), (100, 0), 110), (100, 0), "it is behind");
        assert_eq!(moved((120, 0), (100, 0), 110), (110, 0), "it is ahead");
    }

    #[test]
    fn an_end_keeps_its_distance_to_the_start_and_is_not_in_the_future() {
        assert_eq!(moved((90, 97), (100, 0), 110), (100, 107));
        assert_eq!(moved((90, 97), (0, 100), 110), (100, 107));
        assert_eq!(moved((90, 130), (0, 100), 110), (100, 110));
        assert_eq!(moved((0, 130), (0, 0), 110), (0, 110), "it never started");
        assert_eq!(moved((100, 50), (0, 100), 110), (100, 100), "its clock went back");
    }
}
