//! The leak hunter: random clients change their sessions in turns, behind the proxy and, each with a twin, directly;
//! no client may see anything that its twin does not.
//!
//! Each run prints its seeds, and `PGT_SEED=<seed>` runs one again. `PGT_HUNT_SECONDS=600` hunts for that long with new ones;
//! without it, transaction mode is tried with the fixed seed only, so that what fails is what was changed.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::harness::random::{Random, given_seed, seed};

mod actions;
mod answers;
mod frames;
mod ground;
mod hunt;
mod pair;
mod shrink;
mod statements;
mod texts;

use actions::Chooser;
use ground::{Ground, Way};
use hunt::{Action, Hunt, Newcomer, Rules, Tally};
use pair::Difference;

/// Actions of one hunt: few enough that a proxy and its pools are often new.
const ACTIONS: usize = 800;
/// How many of the last actions are told with a difference.
const TOLD: usize = 40;
/// A seed that is always tried.
const FIXED_SEED: u64 = 20_240_229;

/// A hunt from its beginning to the action that made a difference.
struct Found {
    rules: Rules,
    newcomers: Vec<Newcomer>,
    actions: Vec<Action>,
    difference: Difference,
}

/// Hunts with this seed. PostgreSQL's answers to the twins are part of the choice, so it comes the same each time.
async fn hunt(ground: &Ground, way: Way, seed: u64) -> Result<Tally, Found> {
    let rules = rules(way, seed);
    let mut chooser = Chooser::new(seed, rules);
    let newcomers: Vec<Newcomer> = (0..rules.clients).map(|_| chooser.newcomer()).collect();
    let mut hunt = match Hunt::begin(ground, rules, &newcomers).await {
        Ok(hunt) => hunt,
        Err(difference) => return Err(Found { rules, newcomers, actions: vec![], difference }),
    };
    let (mut actions, mut result) = (Vec::new(), Ok(()));
    while actions.len() < ACTIONS && result.is_ok() {
        let action = chooser.next(&hunt);
        actions.push(action.clone());
        result = hunt.perform(&action).await;
    }
    let tally = hunt.end().await;
    result.map(|()| tally).map_err(|difference| Found { rules, newcomers, actions, difference })
}

/// Mostly two backends, which the clients have to share; sometimes one for everybody.
fn rules(way: Way, seed: u64) -> Rules {
    let mut random = Random::new(seed ^ 0x5eed);
    let clients = 4 + random.below(3);
    let reads_sequences = random.chance(50);
    // Whoever may have advanced a sequence is pinned where they are read: DO blocks, too.
    let one_each = way == Way::Session || reads_sequences || random.chance(20);
    let backends = if one_each { clients + 1 } else { 2 };
    // EXECUTE of a statement of Parse's is one of the things that cannot be hidden in transaction mode (docs/POOLING.md).
    let mixes_names = random.chance(20) && way == Way::Session;
    Rules { way, clients, backends, mixes_names, reads_sequences }
}

impl Found {
    fn text(&self, seed: u64) -> String {
        let mut text = format!("PGT_SEED={seed}: a difference at action {}, {:?}\n", self.actions.len(), self.rules);
        let acts = |client| self.actions.iter().any(|action| action.client() == Some(client));
        for (client, newcomer) in self.newcomers.iter().enumerate().filter(|(client, _)| acts(*client)) {
            writeln!(text, "  client {client}: {newcomer:?}").expect("a string grows");
        }
        let first = self.actions.len().saturating_sub(TOLD);
        for (number, action) in self.actions.iter().enumerate().skip(first) {
            writeln!(text, "  {}. {action}", number + 1).expect("a string grows");
        }
        write!(text, "  {}", self.difference.text).expect("a string grows");
        text
    }
}

/// Hunts with the given seed, or for `duration` with the fixed one and new ones.
async fn hunt_for(duration: Duration, way: Way) {
    let ground = Ground::new().await;
    let begun = Instant::now();
    let duration = std::env::var("PGT_HUNT_SECONDS")
        .map_or(duration, |seconds| Duration::from_secs(seconds.parse().expect("PGT_HUNT_SECONDS is a number")));
    let (mut hunts, mut tally) = (0, Tally::default());
    let mut next = given_seed().unwrap_or(FIXED_SEED);
    while hunts == 0 || given_seed().is_none() && begun.elapsed() < duration {
        println!("PGT_SEED={next}");
        match hunt(&ground, way, next).await {
            Ok(more) => tally.add(more),
            Err(found) => {
                println!("{}", found.text(next));
                let shortest = shrink::shrink(&ground, found).await;
                panic!("The shortest way to a difference:\n{}", shortest.text(next));
            }
        }
        hunts += 1;
        next = seed();
    }
    println!("{hunts} hunts of {ACTIONS} actions in {:?} without a difference, {way:?}\n{tally}", begun.elapsed());
}

#[tokio::test]
async fn without_a_proxy_twins_do_not_differ() {
    hunt_for(Duration::from_secs(3), Way::Direct).await;
}

#[tokio::test]
async fn in_session_mode_nobody_sees_a_difference() {
    hunt_for(Duration::from_secs(3), Way::Session).await;
}

#[tokio::test]
async fn in_transaction_mode_nobody_sees_a_difference() {
    hunt_for(Duration::ZERO, Way::Transaction { pin_check: false }).await;
}

#[tokio::test]
async fn with_pin_check_not_even_of_what_functions_hide() {
    hunt_for(Duration::ZERO, Way::Transaction { pin_check: true }).await;
}
