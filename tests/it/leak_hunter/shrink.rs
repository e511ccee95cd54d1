//! Leaves out actions, and parts of them, as long as the difference remains.

use std::time::{Duration, Instant};

use super::Found;
use super::frames::Frame;
use super::ground::Ground;
use super::hunt::{Action, Hunt};

/// Time for all of it.
const TIME: Duration = Duration::from_secs(90);

/// The fewest actions that were found to make a difference of the same kind.
pub async fn shrink(ground: &Ground, mut found: Found) -> Found {
    let deadline = Instant::now() + TIME;
    let mut size = found.actions.len().div_ceil(2);
    while size > 0 {
        let mut start = found.actions.len();
        while start > 0 {
            start = start.saturating_sub(size);
            let end = (start + size).min(found.actions.len());
            let left = [&found.actions[..start], &found.actions[end..]].concat();
            found = replay(ground, &found, &left, deadline).await.unwrap_or(found);
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    let mut place = 0;
    while place < found.actions.len() {
        let simpler = simpler(&found.actions[place]).into_iter();
        let mut smaller = None;
        for action in simpler {
            let changed = [&found.actions[..place], &[action], &found.actions[place + 1..]].concat();
            smaller = replay(ground, &found, &changed, deadline).await;
            if smaller.is_some() {
                break;
            }
        }
        match smaller {
            Some(smaller) => found = smaller,
            None => place += 1,
        }
    }
    found
}

/// The action without one of its messages or statements.
fn simpler(action: &Action) -> Vec<Action> {
    let Action::Say(client, frames) = action else { return vec![] };
    let mut simpler = Vec::new();
    for (place, frame) in frames.iter().enumerate() {
        let mut with = |frame: Option<Frame>| {
            let rest = frame.into_iter().chain(frames[place + 1..].iter().cloned());
            let frames: Vec<Frame> = frames[..place].iter().cloned().chain(rest).collect();
            if frames.last().is_some_and(Frame::gets_ready) {
                simpler.push(Action::Say(*client, frames));
            }
        };
        // A Sync goes only where it ends nothing: what a query before it has failed to do would swallow the next one.
        if *frame != Frame::Sync || place == 0 || frames[place - 1].gets_ready() {
            with(None);
        }
        if let Frame::Query(sql) = frame
            && sql.contains("; ")
        {
            let statements: Vec<&str> = sql.split("; ").collect();
            for left_out in 0..statements.len() {
                let left = [&statements[..left_out], &statements[left_out + 1..]].concat();
                with(Some(Frame::Query(left.join("; "))));
            }
        }
    }
    simpler
}

/// Does these actions in a new hunt, up to a difference of the same kind if they make one in time.
async fn replay(ground: &Ground, found: &Found, actions: &[Action], deadline: Instant) -> Option<Found> {
    if Instant::now() > deadline {
        return None;
    }
    let (rules, newcomers) = (found.rules, found.newcomers.clone());
    let mut hunt = Hunt::begin(ground, rules, &newcomers).await.ok()?;
    let (mut done, mut result) = (0, Ok(()));
    while done < actions.len() && result.is_ok() {
        result = hunt.perform(&actions[done]).await;
        done += 1;
    }
    hunt.end().await;
    let difference = result.err().filter(|difference| difference.kind == found.difference.kind)?;
    Some(Found { rules, newcomers, actions: actions[..done].to_vec(), difference })
}
