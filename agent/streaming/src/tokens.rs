//! One-time tokens, and the requests that wait for their clients.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::request::{Plan, RequestError};

/// Random bytes of a token. The reference server takes 6; nothing but the token protects a URL, so these are too many to guess.
const TOKEN_LEN: usize = 16;

/// The requests that wait for their clients.
#[derive(Debug)]
pub(crate) struct Tokens {
    ttl: Duration,
    most: usize,
    /// Guards all that waits; held for a look-up.
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    plans: HashMap<String, Plan>,
    /// Oldest first. A token that was redeemed stays until it would have expired, or is the oldest.
    order: VecDeque<(Instant, String)>,
}

impl Tokens {
    pub(crate) fn new(ttl: Duration, most: usize) -> Self {
        Self { ttl, most, pending: Mutex::default() }
    }

    /// Keeps a plan, and says under which token.
    pub(crate) fn keep(&self, plan: Plan) -> Result<String, RequestError> {
        let token = random_token()?;
        let mut pending = self.lock();
        pending.expire();
        if pending.plans.len() >= self.most {
            return Err(RequestError::ManyPending(self.most));
        }
        pending.order.push_back((Instant::now() + self.ttl, token.clone()));
        pending.plans.insert(token.clone(), plan);
        Ok(token)
    }

    /// Takes out what is kept under a token, if that has not expired.
    pub(crate) fn redeem(&self, token: &str) -> Option<Plan> {
        let mut pending = self.lock();
        pending.expire();
        pending.plans.remove(token)
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((expires, token)) = self.order.front() {
            if *expires > now && self.plans.contains_key(token) {
                break;
            }
            self.plans.remove(token);
            self.order.pop_front();
        }
        // What was redeemed out of order must not pile up behind one that is not.
        if self.order.len() > 2 * self.plans.len() + 16 {
            self.order.retain(|(_, token)| self.plans.contains_key(token));
        }
    }
}

fn random_token() -> Result<String, RequestError> {
    let mut bytes = [0; TOKEN_LEN];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| RequestError::Random(error.to_string()))?;
    }
    let mut token = String::with_capacity(2 * TOKEN_LEN);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(token, "{byte:02x}");
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PortForwardRequest;

    const TTL: Duration = Duration::from_secs(60);

    fn plan() -> Plan {
        Plan::PortForward(PortForwardRequest { sandbox_id: "s".to_owned(), ports: vec![] })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once() {
        let tokens = Tokens::new(TTL, 10);
        let token = tokens.keep(plan()).unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(tokens.redeem("another"), None);
        assert_eq!(tokens.redeem(&token), Some(plan()));
        assert_eq!(tokens.redeem(&token), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_expires() {
        let tokens = Tokens::new(TTL, 10);
        let (early, late) = (tokens.keep(plan()).unwrap(), tokens.keep(plan()).unwrap());
        tokio::time::advance(TTL - Duration::from_secs(1)).await;
        assert_eq!(tokens.redeem(&early), Some(plan()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(tokens.redeem(&late), None);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_most_of_those_that_wait() {
        let tokens = Tokens::new(TTL, 3);
        let kept = (0..3).map(|_| tokens.keep(plan()).unwrap()).collect::<Vec<_>>();
        assert_eq!(tokens.keep(plan()), Err(RequestError::ManyPending(3)));
        assert!(tokens.redeem(&kept[1]).is_some());
        tokens.keep(plan()).unwrap();
        tokio::time::advance(TTL).await;
        for _ in 0..3 {
            tokens.keep(plan()).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn redeemed_tokens_do_not_pile_up_behind_one_that_waits() {
        let tokens = Tokens::new(TTL, 10);
        tokens.keep(plan()).unwrap();
        for _ in 0..10_000 {
            let token = tokens.keep(plan()).unwrap();
            tokens.redeem(&token).unwrap();
        }
        assert!(tokens.lock().order.len() < 64);
    }
}
