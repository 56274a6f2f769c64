//! What a guest tells of its containers. It may tell anything: sizes are bounded, and times are those of the host's clock.
//!
//! A guest's clock is set once, when its pod is set up, and runs on by itself: it is behind by the time that the message took, and later by
//! whatever the host's clock was corrected. What is known to lie between a question and its answer is put there, and the rest moves with it.

use hartpod_proto::pod::v1 as pod;

/// Bytes of a message that are kept, as of what the kubelet keeps of a termination message.
const MESSAGE: usize = 4096;
/// Supplementary groups that are kept: no more can be asked for.
const GROUPS: usize = 4096;

/// Cuts what is kept for as long as the container is known, and gives back what the rest was in.
pub(crate) fn cut(state: &mut pod::ContainerState) {
    let mut end = MESSAGE.min(state.message.len());
    while !state.message.is_char_boundary(end) {
        end -= 1;
    }
    state.message.truncate(end);
    state.message.shrink_to_fit();
    state.container_id.shrink_to_fit();
    if let Some(user) = &mut state.user {
        user.additional_gids.truncate(GROUPS);
        user.additional_gids.shrink_to_fit();
    }
}

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
    fn what_a_guest_tells_is_cut() {
        let user = Some(pod::ResolvedUser { additional_gids: vec![1; 100_000], ..Default::default() });
        let mut state = pod::ContainerState { message: "\u{e9}".repeat(10_000), user, ..Default::default() };
        cut(&mut state);
        assert_eq!(state.message.len(), 4096);
        let groups = state.user.unwrap().additional_gids;
        assert_eq!(groups.len(), 4096);
        assert!(groups.capacity() < 2 * 4096 && state.message.capacity() < 2 * 4096, "what was cut is kept");
        let mut odd =
            pod::ContainerState { message: format!("x{}", "\u{e9}".repeat(10_000)), ..Default::default() };
        cut(&mut odd);
        assert_eq!(odd.message.len(), 4095);
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
