//! The ledger under a simulated clock: random requests of several tenants, backends that take time to open and to close.

use std::collections::{BTreeMap, BinaryHeap};

use super::tests::FAIRNESS;
use super::*;

const CONNECT: Duration = Duration::from_millis(5);
const CLOSE: Duration = Duration::from_millis(1);

/// A tenant as the model plays it.
#[derive(Clone, Copy)]
struct Player {
    share: Share,
    /// Clients that ask again and again.
    clients: u32,
    /// Mean milliseconds of a transaction, and from its end to the client's next request.
    works: f64,
    thinks: f64,
}

const PLAYER: Player = Player {
    share: Share { max: 100, max_connecting: 100, guaranteed: 0, weight: 1 },
    clients: 40,
    works: 10.0,
    thinks: 0.0,
};

enum Event {
    Ask(usize),
    Done(usize, Slot<usize>),
    Opened(usize),
    Closed(usize),
    Reap,
}

/// What it was like for one tenant.
#[derive(Default, Clone)]
struct Result {
    served: u32,
    /// Seconds of backends held.
    held: f64,
    /// Since when it has had a waiter and less than what is guaranteed to it; and the longest that took.
    owed_since: Option<Instant>,
    longest_owed: Duration,
    waits: Vec<Duration>,
}

struct Model {
    ledger: Ledger<usize, (usize, Instant), ()>,
    players: Vec<Player>,
    pools: Vec<PoolKey>,
    events: BTreeMap<(Instant, u64), Event>,
    order: u64,
    now: Instant,
    random: u64,
    open: Vec<u32>,
    waiting: Vec<u32>,
    results: Vec<Result>,
    bound: u32,
    opens: u32,
}

impl Model {
    fn new(bound: u32, fairness: Fairness, players: &[Player], seed: u64) -> Self {
        let now = Instant::now();
        let mut ledger = Ledger::new(Bound { max: bound, max_connecting: 100 }, fairness, now);
        let settings = PoolSettings {
            max: 100,
            guaranteed: 0,
            min: 0,
            idle_timeout: Duration::from_secs(60),
            lifetime: Duration::from_secs(3600),
            retry: Duration::from_secs(1),
            retry_max: Duration::from_secs(1),
        };
        let pools = players.iter().map(|player| {
            let tenant = ledger.add_tenant(player.share);
            let role = ledger.add_role(tenant);
            ledger.add_pool(role, settings, true)
        });
        let pools = pools.collect();
        let mut model = Model {
            ledger,
            players: players.to_vec(),
            pools,
            events: BTreeMap::new(),
            order: 0,
            now,
            random: seed,
            open: vec![0; players.len()],
            waiting: vec![0; players.len()],
            results: vec![Result::default(); players.len()],
            bound,
            opens: 0,
        };
        for (index, player) in players.iter().enumerate() {
            for _ in 0..player.clients {
                let first = model.about(5.0 + player.thinks);
                model.later(first, Event::Ask(index));
            }
        }
        model.later(Duration::from_secs(1), Event::Reap);
        model
    }

    /// A number in 0..1 (splitmix64).
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Half of the mean to one and a half of it.
    fn about(&mut self, mean_ms: f64) -> Duration {
        Duration::from_secs_f64(mean_ms * (0.5 + self.random()) / 1e3)
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.order += 1;
        self.events.insert((self.now + after, self.order), event);
    }

    fn begin(&mut self, tenant: usize, slot: Slot<usize>) {
        let works = self.about(self.players[tenant].works);
        self.results[tenant].held += works.as_secs_f64();
        self.results[tenant].served += 1;
        self.later(works, Event::Done(tenant, slot));
    }

    fn tenant_of(&self, pool: PoolKey) -> usize {
        self.pools.iter().position(|key| *key == pool).expect("one of ours")
    }

    fn carry_out(&mut self, effects: Effects<usize, (usize, Instant), ()>) {
        for effect in effects {
            match effect {
                Effect::Grant(_, (tenant, since), slot) => {
                    self.waiting[tenant] -= 1;
                    self.results[tenant].waits.push(self.now - since);
                    self.begin(tenant, slot);
                }
                Effect::Open(pool) => {
                    let tenant = self.tenant_of(pool);
                    self.open[tenant] += 1;
                    self.opens += 1;
                    self.later(CONNECT, Event::Opened(tenant));
                }
                Effect::Close(pool, _) => {
                    let tenant = self.tenant_of(pool);
                    self.later(CLOSE, Event::Closed(tenant));
                }
                Effect::Fail(..) => unreachable!("every connect succeeds"),
                Effect::Shed((tenant, _)) => {
                    self.waiting[tenant] -= 1;
                    self.later(Duration::from_secs(5), Event::Ask(tenant));
                }
            }
        }
    }

    /// One event, and all that has to be true after it.
    fn step(&mut self) {
        let ((now, _), event) = self.events.pop_first().expect("there is always a next reap");
        self.now = now;
        let mut effects = Effects::new();
        match event {
            Event::Ask(tenant) => {
                let waiter = || (tenant, now);
                match self.ledger.checkout(self.pools[tenant], now, waiter, &mut effects) {
                    Checkout::Ready(slot) => {
                        self.results[tenant].waits.push(Duration::ZERO);
                        self.begin(tenant, slot);
                    }
                    Checkout::Waiting(_) => self.waiting[tenant] += 1,
                    Checkout::Refused(()) | Checkout::Gone => unreachable!("every connect succeeds"),
                }
            }
            Event::Done(tenant, slot) => {
                self.ledger.release(self.pools[tenant], slot, now, &mut effects);
                let thinks = self.about(self.players[tenant].thinks);
                self.later(thinks, Event::Ask(tenant));
            }
            Event::Opened(tenant) => self.ledger.opened(self.pools[tenant], tenant, now, &mut effects),
            Event::Closed(tenant) => {
                self.open[tenant] -= 1;
                self.ledger.closed(self.pools[tenant], now, &mut effects);
            }
            Event::Reap => {
                self.ledger.reap(now, &mut effects);
                self.later(Duration::from_secs(1), Event::Reap);
            }
        }
        self.carry_out(effects);
        self.check();
    }

    fn check(&mut self) {
        assert!(self.open.iter().sum::<u32>() <= self.bound, "{:?}", self.open);
        for (index, player) in self.players.iter().enumerate() {
            assert!(self.open[index] <= player.share.max, "{:?}", self.open);
            assert_eq!(self.ledger.counts(self.pools[index]).waiting, self.waiting[index]);
            let result = &mut self.results[index];
            let is_owed = self.waiting[index] > 0 && self.open[index] < player.share.guaranteed;
            match (is_owed, result.owed_since) {
                (true, None) => result.owed_since = Some(self.now),
                (false, Some(since)) => {
                    result.longest_owed = result.longest_owed.max(self.now - since);
                    result.owed_since = None;
                }
                _ => {}
            }
        }
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            self.step();
        }
    }

    /// Of the time that backends were held in.
    fn shares(&self) -> Vec<f64> {
        let all: f64 = self.results.iter().map(|result| result.held).sum();
        self.results.iter().map(|result| result.held / all).collect()
    }
}

impl Result {
    fn wait_at(&self, quantile: f64) -> Duration {
        let mut smallest: BinaryHeap<Duration> = self.waits.iter().copied().collect();
        let above = (self.waits.len() as f64 * (1.0 - quantile)) as usize;
        for _ in 0..above {
            smallest.pop();
        }
        smallest.pop().unwrap_or_default()
    }
}

fn weight(weight: u32, works: f64) -> Player {
    Player { share: Share { weight, ..PLAYER.share }, works, ..PLAYER }
}

#[track_caller]
fn assert_shares(model: &Model) {
    let weights: u32 = model.players.iter().map(|player| player.share.weight).sum();
    for (share, player) in model.shares().iter().zip(&model.players) {
        let due = f64::from(player.share.weight) / f64::from(weights);
        assert!((share / due - 1.0).abs() <= 0.05, "{due:.3} is due, {share:.3} got: {:.3?}", model.shares());
    }
}

#[test]
fn busy_tenants_get_backend_time_by_weight_whatever_their_transactions_take() {
    let mut model = Model::new(16, FAIRNESS, &[weight(1, 2.0), weight(2, 300.0), weight(5, 20.0)], 1);
    model.run(100_000);
    assert_shares(&model);
}

#[test]
fn more_tenants_than_backends_take_turns() {
    let players = [weight(1, 5.0), weight(1, 50.0), weight(1, 20.0), weight(2, 8.0), weight(2, 30.0), weight(4, 3.0)];
    let mut model = Model::new(4, FAIRNESS, &players, 2);
    model.run(100_000);
    assert_shares(&model);
    let seconds = model.results.iter().map(|result| result.held).sum::<f64>();
    let lost = f64::from(model.opens) * (CONNECT + CLOSE).as_secs_f64();
    assert!(lost < seconds / 10.0, "{lost:.1} s of connects for {seconds:.1} s of work");
}

#[test]
fn calm_tenants_hardly_wait_for_a_greedy_one() {
    let greedy = Player { clients: 64, works: 200.0, ..PLAYER };
    let calm = Player { clients: 2, works: 2.0, thinks: 50.0, ..PLAYER };
    let players: Vec<Player> = std::iter::once(greedy).chain([calm; 9]).collect();
    let p99 = |fairness| {
        let mut model = Model::new(16, fairness, &players, 3);
        model.run(100_000);
        let longest = model.results[1..].iter().map(|result| result.wait_at(0.99)).max();
        longest.expect("there are calm ones")
    };
    let (fair, first_come) = (p99(FAIRNESS), p99(Fairness { enabled: false, ..FAIRNESS }));
    assert!(fair < Duration::from_millis(20) && fair < first_come / 5, "{fair:?} against {first_come:?}");
}

#[test]
fn what_is_guaranteed_comes_back_with_the_next_release() {
    let owner = Player { share: Share { guaranteed: 6, ..PLAYER.share }, clients: 6, works: 5.0, thinks: 3000.0 };
    let greedy = Player { clients: 100, works: 100.0, ..PLAYER };
    let mut model = Model::new(16, FAIRNESS, &[owner, greedy, greedy], 4);
    model.run(100_000);
    let longest = model.results[0].longest_owed;
    // One of sixteen transactions of 150 ms at most ends before, is closed, and the owner's opens.
    assert!(longest <= Duration::from_millis(160) + CONNECT + CLOSE, "{longest:?}");
    assert!(model.shares()[1] > 0.4, "what the owner does not use is lent: {:?}", model.shares());
}

#[test]
fn nobody_is_lost_among_tenants_that_come_and_go() {
    let now_and_then = |clients, works, thinks, guaranteed, max| Player {
        share: Share { max, max_connecting: 2, guaranteed, weight: 1 + clients % 3 },
        clients,
        works,
        thinks,
    };
    for seed in 0..5 {
        let players = [
            now_and_then(1, 10.0, 4000.0, 1, 2),
            now_and_then(3, 1.0, 1.0, 0, 1),
            now_and_then(7, 40.0, 100.0, 2, 5),
            now_and_then(20, 3.0, 500.0, 0, 8),
            now_and_then(2, 900.0, 10.0, 0, 8),
        ];
        let shed = Some(Shed { target: Duration::from_millis(200), interval: Duration::from_secs(1) });
        let mut model = Model::new(8, Fairness { shed, ..FAIRNESS }, &players, seed);
        model.run(20_000);
        // No new requests: whoever waits is served, or turned away.
        for _ in 0..2000 {
            model.step();
            model.events.retain(|_, event| !matches!(event, Event::Ask(_)));
        }
        assert_eq!(model.waiting, [0; 5]);
    }
}

#[test]
fn a_standing_queue_turns_away_those_who_had_most() {
    let greedy = Player { clients: 200, works: 100.0, ..PLAYER };
    let modest = Player { clients: 4, works: 100.0, thinks: 100.0, ..PLAYER };
    let shed = Some(Shed { target: Duration::from_millis(300), interval: Duration::from_millis(500) });
    let mut model = Model::new(8, Fairness { shed, ..FAIRNESS }, &[greedy, modest], 5);
    model.run(60_000);
    let with = model.results[0].wait_at(0.5);
    let mut queueing = Model::new(8, FAIRNESS, &[greedy, modest], 5);
    queueing.run(60_000);
    let without = queueing.results[0].wait_at(0.5);
    assert!(with < without / 2, "{with:?} with shedding, {without:?} without");
}
