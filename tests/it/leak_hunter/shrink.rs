//! Leaves out actions as long as a difference remains.

use std::time::{Duration, Instant};

use super::Found;
use super::ground::Ground;
use super::hunt::{Action, Hunt};

/// Time for all of it.
const TIME: Duration = Duration::from_secs(60);

/// The fewest actions that were found to make a difference, not always the same one.
pub async fn shrink(ground: &Ground, mut found: Found) -> Found {
    let begun = Instant::now();
    let mut size = found.actions.len().div_ceil(2);
    while size > 0 {
        let mut start = found.actions.len();
        while start > 0 {
            start = start.saturating_sub(size);
            let end = (start + size).min(found.actions.len());
            if begun.elapsed() > TIME {
                return found;
            }
            let left = [&found.actions[..start], &found.actions[end..]].concat();
            if let Some(shorter) = replay(ground, &found, &left).await {
                found = shorter;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    found
}

/// Does these actions in a new hunt, up to a difference if they make one.
async fn replay(ground: &Ground, found: &Found, actions: &[Action]) -> Option<Found> {
    let (rules, newcomers) = (found.rules, found.newcomers.clone());
    let mut hunt = match Hunt::begin(ground, rules, &newcomers).await {
        Ok(hunt) => hunt,
        Err(difference) => return Some(Found { rules, newcomers, actions: vec![], difference }),
    };
    let (mut done, mut result) = (0, Ok(()));
    while done < actions.len() && result.is_ok() {
        result = hunt.perform(&actions[done]).await;
        done += 1;
    }
    hunt.end().await;
    result.err().map(|difference| Found { rules, newcomers, actions: actions[..done].to_vec(), difference })
}
