//! The ledger's rules one by one, and all of its invariants under random sequences of events.

use proptest::prelude::*;

use super::*;

type TestLedger = Ledger<u32, u32, &'static str>;
type TestEffects = Effects<u32, u32, &'static str>;

const SETTINGS: PoolSettings = PoolSettings {
    max: 10,
    guaranteed: 0,
    min: 0,
    idle_timeout: Duration::from_secs(60),
    lifetime: Duration::from_secs(3600),
    retry: Duration::from_secs(1),
    retry_max: Duration::from_secs(8),
};

fn bound(max: u32) -> Bound {
    Bound { max, max_connecting: 4 }
}

fn share(max: u32) -> Share {
    Share { max, max_connecting: 4, guaranteed: 0, weight: 1 }
}

pub(super) const FAIRNESS: Fairness =
    Fairness { enabled: true, quantum: Duration::from_millis(100), lend_after: Duration::from_secs(1), shed: None };

/// A ledger whose effects are collected, with numbered backends and waiters.
struct Trial {
    ledger: TestLedger,
    effects: TestEffects,
    now: Instant,
    number: u32,
}

impl Trial {
    fn new(instance: u32) -> Self {
        let now = Instant::now();
        Trial { ledger: Ledger::new(bound(instance), FAIRNESS, now), effects: TestEffects::new(), now, number: 0 }
    }

    fn pool(&mut self, tenant: TenantKey, max: u32) -> PoolKey {
        let role = self.ledger.add_role(tenant);
        self.ledger.add_pool(role, PoolSettings { max, ..SETTINGS }, true)
    }

    /// Pools of one role.
    fn pools<const N: usize>(&mut self, tenant: TenantKey, max: u32) -> [PoolKey; N] {
        let role = self.ledger.add_role(tenant);
        [(); N].map(|()| self.ledger.add_pool(role, PoolSettings { max, ..SETTINGS }, false))
    }

    fn ask(&mut self, pool: PoolKey, waiter: u32) -> Checkout<u32, &'static str> {
        self.ledger.checkout(pool, self.now, || waiter, &mut self.effects)
    }

    /// Asks, and connects when told to.
    fn get(&mut self, pool: PoolKey) -> Slot<u32> {
        match self.ask(pool, 999) {
            Checkout::Ready(slot) => slot,
            Checkout::Waiting(_) => {
                assert!(self.effects.iter().any(|effect| matches!(effect, Effect::Open(_))), "{:?}", self.effects);
                self.connect(pool);
                let at = self.effects.iter().position(|e| matches!(e, Effect::Grant(..))).unwrap();
                match self.effects.swap_remove(at) {
                    Effect::Grant(_, _, slot) => slot,
                    _ => unreachable!(),
                }
            }
            Checkout::Refused(error) => panic!("{error}"),
            Checkout::Gone => panic!("gone"),
        }
    }

    fn connect(&mut self, pool: PoolKey) {
        let at = self.effects.iter().position(|e| matches!(e, Effect::Open(key) if *key == pool)).unwrap();
        self.effects.remove(at);
        self.number += 1;
        self.ledger.opened(pool, self.number, self.now, &mut self.effects);
    }

    fn release(&mut self, pool: PoolKey, slot: Slot<u32>) {
        self.ledger.release(pool, slot, self.now, &mut self.effects);
    }

    fn taken(&mut self) -> TestEffects {
        std::mem::take(&mut self.effects)
    }
}

#[test]
fn the_first_waiter_is_served_first_and_nobody_barges() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(share(1));
    let pool = t.pool(tenant, 1);
    let slot = t.get(pool);
    assert!(matches!(t.ask(pool, 1), Checkout::Waiting(_)));
    assert!(matches!(t.ask(pool, 2), Checkout::Waiting(_)));
    t.release(pool, slot);
    let [Effect::Grant(_, 1, slot)] = <[_; 1]>::try_from(t.taken().into_vec()).unwrap() else {
        panic!("not the first")
    };
    t.release(pool, slot);
    assert!(matches!(t.taken()[..], [Effect::Grant(_, 2, _)]));
}

#[test]
fn an_abandoned_place_is_skipped() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(share(1));
    let pool = t.pool(tenant, 1);
    let slot = t.get(pool);
    let Checkout::Waiting(ticket) = t.ask(pool, 1) else { panic!() };
    assert!(matches!(t.ask(pool, 2), Checkout::Waiting(_)));
    t.ledger.abandon(pool, ticket);
    t.ledger.abandon(pool, ticket);
    t.release(pool, slot);
    assert!(matches!(t.taken()[..], [Effect::Grant(_, 2, _)]));
}

#[test]
fn connects_under_way_are_bounded() {
    let mut t = Trial::new(100);
    let tenant = t.ledger.add_tenant(share(50));
    let pool = t.pool(tenant, 50);
    for waiter in 0..20 {
        t.ask(pool, waiter);
    }
    assert_eq!(t.taken().len(), 4);
    assert_eq!(t.ledger.counts(pool), Counts { idle: 0, active: 0, connecting: 4, waiting: 20 });
}

#[test]
fn an_idle_role_gives_way_to_another_of_its_tenant() {
    let mut t = Trial::new(100);
    let tenant = t.ledger.add_tenant(share(1));
    let (first, second) = (t.pool(tenant, 1), t.pool(tenant, 1));
    let slot = t.get(first);
    let number = slot.backend;
    t.release(first, slot);
    assert!(matches!(t.ask(second, 7), Checkout::Waiting(_)));
    let effects = t.taken();
    assert!(matches!(effects[..], [Effect::Close(key, backend)] if key == first && backend == number), "{effects:?}");
    // The slot is free only once the instance has seen the backend go.
    t.ledger.closed(first, t.now, &mut t.effects);
    assert!(matches!(t.effects[..], [Effect::Open(key)] if key == second));
}

#[test]
fn a_busy_role_gives_way_to_one_that_has_nothing() {
    let mut t = Trial::new(100);
    let tenant = t.ledger.add_tenant(share(2));
    let (busy, starved) = (t.pool(tenant, 2), t.pool(tenant, 2));
    let (one, two) = (t.get(busy), t.get(busy));
    t.ask(starved, 1);
    t.ask(busy, 2);
    t.release(busy, one);
    assert!(matches!(t.taken()[..], [Effect::Close(key, _)] if key == busy));
    t.ledger.closed(busy, t.now, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Open(key)] if key == starved));
    // Both have their share now: the next release stays in the pool.
    t.release(busy, two);
    assert!(matches!(t.taken()[..], [Effect::Grant(key, 2, _)] if key == busy));
}

#[test]
fn the_instance_bound_holds_across_tenants() {
    let mut t = Trial::new(1);
    let (a, b) = (t.ledger.add_tenant(share(5)), t.ledger.add_tenant(share(5)));
    let (pool_a, pool_b) = (t.pool(a, 5), t.pool(b, 5));
    let slot = t.get(pool_a);
    t.ask(pool_b, 1);
    assert!(t.taken().is_empty());
    t.release(pool_a, slot);
    assert!(matches!(t.taken()[..], [Effect::Close(key, _)] if key == pool_a));
    t.ledger.closed(pool_a, t.now, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Open(key)] if key == pool_b));
}

#[test]
fn a_failed_connect_reaches_everybody_at_once_and_is_not_repeated_too_soon() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(Share { max_connecting: 1, ..share(5) });
    let pool = t.pool(tenant, 5);
    t.ask(pool, 1);
    t.ask(pool, 2);
    t.effects.clear();
    t.ledger.open_failed(pool, "refused", 1.0, t.now, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Fail(1, "refused"), Effect::Fail(2, "refused")]));
    assert!(matches!(t.ask(pool, 3), Checkout::Refused("refused")));
    t.now += Duration::from_secs(1);
    assert!(matches!(t.ask(pool, 4), Checkout::Waiting(_)));
    t.effects.clear();
    t.ledger.open_failed(pool, "refused", 1.0, t.now, &mut t.effects);
    t.now += Duration::from_millis(1500);
    assert!(matches!(t.ask(pool, 5), Checkout::Refused(_)), "the second wait is twice as long");
}

#[test]
fn a_failed_connect_leaves_those_alone_who_can_be_served() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(share(5));
    let pool = t.pool(tenant, 5);
    let slot = t.get(pool);
    t.ask(pool, 1);
    t.effects.clear();
    t.ledger.open_failed(pool, "too many clients", 0.0, t.now, &mut t.effects);
    assert!(t.taken().is_empty());
    t.release(pool, slot);
    assert!(matches!(t.taken()[..], [Effect::Grant(_, 1, _)]));
}

#[test]
fn the_reaper_closes_idle_and_old_backends_down_to_the_minimum() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(share(5));
    let role = t.ledger.add_role(tenant);
    let pool = t.ledger.add_pool(role, PoolSettings { min: 1, ..SETTINGS }, true);
    let (one, two) = (t.get(pool), t.get(pool));
    t.release(pool, one);
    t.release(pool, two);
    t.now += Duration::from_secs(61);
    t.ledger.reap(t.now, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Close(..)]));
    t.ledger.closed(pool, t.now, &mut t.effects);
    t.now += Duration::from_secs(3600);
    t.ledger.reap(t.now, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Close(..), Effect::Open(_)]), "an old one is replaced");
}

#[test]
fn eviction_closes_idle_ones_now_and_others_at_release() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(share(5));
    let pool = t.pool(tenant, 5);
    let (held, idle) = (t.get(pool), t.get(pool));
    t.release(pool, idle);
    t.ledger.evict(pool, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Close(..)]));
    t.release(pool, held);
    assert!(matches!(t.taken()[..], [Effect::Close(..)]));
}

#[test]
fn a_lowered_bound_is_reached_by_releases() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(share(2));
    let pool = t.pool(tenant, 5);
    let (one, two) = (t.get(pool), t.get(pool));
    t.ledger.set_tenant(tenant, share(1), t.now, &mut t.effects);
    t.release(pool, one);
    assert!(matches!(t.taken()[..], [Effect::Close(..)]));
    t.release(pool, two);
    assert!(t.taken().is_empty());
    assert!(!t.ledger.remove_tenant(tenant));
}

#[test]
fn a_key_kept_too_long_finds_nothing() {
    let mut t = Trial::new(10);
    let tenant = t.ledger.add_tenant(share(2));
    let pool = t.pool(tenant, 2);
    assert!(t.ledger.remove_tenant(tenant));
    let other = t.ledger.add_tenant(share(2));
    assert_ne!(t.pool(other, 2), pool);
    assert!(matches!(t.ask(pool, 1), Checkout::Gone));
    assert_eq!(t.ledger.counts(pool), Counts::default());
}

#[test]
fn pools_of_one_role_share_its_bound_and_its_queue() {
    let mut t = Trial::new(100);
    let tenant = t.ledger.add_tenant(share(50));
    let [one, two, three] = t.pools(tenant, 1);
    let slot = t.get(one);
    // The second waits, and goes before whoever asks for the first one's backend later.
    t.ask(two, 2);
    t.ask(one, 1);
    t.ask(three, 3);
    assert!(t.taken().is_empty());
    t.release(one, slot);
    assert!(matches!(t.taken()[..], [Effect::Close(key, _)] if key == one));
    t.ledger.closed(one, t.now, &mut t.effects);
    t.connect(two);
    let [Effect::Grant(_, 2, slot)] = <[_; 1]>::try_from(t.taken().into_vec()).unwrap() else { panic!("out of turn") };
    t.release(two, slot);
    t.taken();
    t.ledger.closed(two, t.now, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Open(key)] if key == one));
}

#[test]
fn nobody_gives_way_to_one_who_cannot_connect_yet() {
    let mut t = Trial::new(100);
    let tenant = t.ledger.add_tenant(share(50));
    let [failing, sound] = t.pools(tenant, 2);
    let held = t.get(failing);
    t.ask(failing, 1);
    t.effects.clear();
    t.ledger.open_failed(failing, "refused", 1.0, t.now, &mut t.effects);
    let (one, second) = (t.get(sound), t.ask(sound, 2));
    assert!(matches!(second, Checkout::Waiting(_)));
    t.release(sound, one);
    let [Effect::Grant(_, 2, one)] = <[_; 1]>::try_from(t.taken().into_vec()).unwrap() else {
        panic!("given up for nothing")
    };
    // A second later it can.
    t.now += Duration::from_secs(1);
    t.ask(sound, 3);
    t.release(sound, one);
    assert!(matches!(t.taken()[..], [Effect::Close(key, _)] if key == sound));
    t.release(failing, held);
}

#[test]
fn a_pool_is_forgotten_when_it_is_empty() {
    let mut t = Trial::new(100);
    let tenant = t.ledger.add_tenant(share(50));
    let [one, two] = t.pools(tenant, 1);
    let role = t.ledger.pools[one].role;
    let slot = t.get(one);
    assert!(!t.ledger.is_unused(one, t.now) && !t.ledger.remove_pool(one));
    t.release(one, slot);
    t.ledger.evict(one, &mut t.effects);
    assert!(!t.ledger.is_unused(one, t.now) && !t.ledger.remove_pool(one), "a close is under way");
    t.ledger.closed(one, t.now, &mut t.effects);
    assert!(t.ledger.is_unused(one, t.now) && t.ledger.remove_pool(one) && t.ledger.remove_pool(one));
    t.ledger.remove_role(role);
    t.ask(two, 1);
    t.effects.clear();
    t.ledger.open_failed(two, "refused", 1.0, t.now, &mut t.effects);
    assert!(!t.ledger.is_unused(two, t.now), "the failure is remembered");
    t.now += Duration::from_secs(1);
    assert!(t.ledger.is_unused(two, t.now) && t.ledger.remove_pool(two));
    t.ledger.remove_role(role);
    assert!(t.ledger.roles.is_empty() && t.ledger.pools.is_empty());
}

#[test]
fn the_minimum_is_the_roles() {
    let mut t = Trial::new(100);
    let tenant = t.ledger.add_tenant(share(50));
    let role = t.ledger.add_role(tenant);
    let [one, two] = [false; 2].map(|lasting| t.ledger.add_pool(role, PoolSettings { min: 1, ..SETTINGS }, lasting));
    let (a, b) = (t.get(one), t.get(two));
    t.release(one, a);
    t.release(two, b);
    t.now += Duration::from_secs(61);
    t.ledger.reap(t.now, &mut t.effects);
    let [Effect::Close(gone, _)] = <[_; 1]>::try_from(t.taken().into_vec()).unwrap() else {
        panic!("one of two stays")
    };
    t.ledger.closed(gone, t.now, &mut t.effects);
    t.now += Duration::from_secs(3600);
    t.ledger.reap(t.now, &mut t.effects);
    assert!(matches!(t.taken()[..], [Effect::Close(key, _)] if key != gone), "and nobody opens another");
}

/// Something that can happen; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Event {
    Ask(usize),
    Release(usize),
    Discard(usize),
    Opened(usize),
    OpenFailed(usize),
    Closed(usize),
    Abandon(usize),
    Reap,
    Evict(usize),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..6usize).prop_map(Event::Ask),
        6 => (0..100usize).prop_map(Event::Release),
        1 => (0..100usize).prop_map(Event::Discard),
        6 => (0..100usize).prop_map(Event::Opened),
        1 => (0..100usize).prop_map(Event::OpenFailed),
        4 => (0..100usize).prop_map(Event::Closed),
        1 => (0..100usize).prop_map(Event::Abandon),
        1 => Just(Event::Reap),
        1 => (0..6usize).prop_map(Event::Evict),
        2 => (0..100u64).prop_map(Event::Pass),
    ]
}

/// The outside world as the ledger's effects leave it.
#[derive(Default)]
struct World {
    held: Vec<(PoolKey, Slot<u32>)>,
    opening: Vec<PoolKey>,
    closing: Vec<PoolKey>,
    waiting: Vec<(PoolKey, Ticket, u32)>,
    served: u32,
}

impl World {
    fn carry_out(&mut self, effects: &mut TestEffects) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Grant(pool, waiter, slot) => {
                    // Within a pool, the queue is first come, first served.
                    let at = self.waiting.iter().position(|(key, ..)| *key == pool).expect("somebody waits");
                    assert_eq!(self.waiting.remove(at).2, waiter, "out of turn");
                    self.held.push((pool, slot));
                    self.served += 1;
                }
                Effect::Open(pool) => self.opening.push(pool),
                Effect::Close(pool, _) => self.closing.push(pool),
                Effect::Fail(waiter, _) | Effect::Shed(waiter) => self.waiting.retain(|(.., other)| *other != waiter),
            }
        }
    }
}

fn pick<T>(list: &mut Vec<T>, number: usize) -> Option<T> {
    (!list.is_empty()).then(|| list.remove(number % list.len()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn bounds_hold_and_nobody_is_lost(events in proptest::collection::vec(event(), 1..300)) {
        let mut t = Trial::new(5);
        let tenants = [t.ledger.add_tenant(share(3)), t.ledger.add_tenant(share(4))];
        let role = t.ledger.add_role(tenants[1]);
        let [one, two] = t.pools(tenants[0], 3);
        let pools = [
            t.pool(tenants[0], 2), one, two, t.pool(tenants[1], 4),
            t.ledger.add_pool(role, PoolSettings { max: 2, min: 1, ..SETTINGS }, true),
            t.ledger.add_pool(role, PoolSettings { max: 2, min: 1, ..SETTINGS }, false),
        ];
        let mut world = World::default();
        let mut asked = 0;
        for event in events {
            let now = t.now;
            match event {
                Event::Ask(pool) => {
                    asked += 1;
                    match t.ledger.checkout(pools[pool], now, || asked, &mut t.effects) {
                        Checkout::Ready(slot) => world.held.push((pools[pool], slot)),
                        Checkout::Waiting(ticket) => world.waiting.push((pools[pool], ticket, asked)),
                        Checkout::Refused(_) | Checkout::Gone => {}
                    }
                }
                Event::Release(n) => if let Some((pool, slot)) = pick(&mut world.held, n) {
                    t.ledger.release(pool, slot, now, &mut t.effects);
                },
                Event::Discard(n) => if let Some((pool, _)) = pick(&mut world.held, n) {
                    t.ledger.discard(pool, now);
                    world.closing.push(pool);
                },
                Event::Opened(n) => if let Some(pool) = pick(&mut world.opening, n) {
                    t.number += 1;
                    t.ledger.opened(pool, t.number, now, &mut t.effects);
                },
                Event::OpenFailed(n) => if let Some(pool) = pick(&mut world.opening, n) {
                    t.ledger.open_failed(pool, "no", 0.5, now, &mut t.effects);
                },
                Event::Closed(n) => if let Some(pool) = pick(&mut world.closing, n) {
                    t.ledger.closed(pool, now, &mut t.effects);
                },
                Event::Abandon(n) => if let Some((pool, ticket, _)) = pick(&mut world.waiting, n) {
                    t.ledger.abandon(pool, ticket);
                },
                Event::Reap => t.ledger.reap(now, &mut t.effects),
                Event::Evict(pool) => t.ledger.evict(pools[pool], &mut t.effects),
                Event::Pass(seconds) => t.now += Duration::from_secs(seconds),
            }
            world.carry_out(&mut t.effects);
            let (mut total, mut per_tenant) = (0, [0, 0]);
            for (index, pool) in pools.iter().enumerate() {
                let counts = t.ledger.counts(*pool);
                let closing = world.closing.iter().filter(|key| *key == pool).count() as u32;
                let open = counts.idle + counts.active + counts.connecting + closing;
                prop_assert_eq!(counts.active as usize, world.held.iter().filter(|(key, _)| key == pool).count());
                prop_assert_eq!(counts.connecting as usize, world.opening.iter().filter(|key| *key == pool).count());
                prop_assert_eq!(counts.waiting as usize, world.waiting.iter().filter(|(key, ..)| key == pool).count());
                let of_pool = &t.ledger.pools[*pool];
                prop_assert!(t.ledger.roles[of_pool.role].usage.open <= of_pool.settings.max);
                total += open;
                per_tenant[index / 3] += open;
            }
            prop_assert!(total <= 5 && per_tenant[0] <= 3 && per_tenant[1] <= 4);
        }
        // Whatever happened: when everything under way succeeds and everybody gives back, everybody is served.
        for _ in 0..10_000 {
            let now = t.now;
            if let Some((pool, slot)) = pick(&mut world.held, 0) {
                t.ledger.release(pool, slot, now, &mut t.effects);
            } else if let Some(pool) = pick(&mut world.closing, 0) {
                t.ledger.closed(pool, now, &mut t.effects);
            } else if let Some(pool) = pick(&mut world.opening, 0) {
                t.number += 1;
                t.ledger.opened(pool, t.number, now, &mut t.effects);
            } else if world.waiting.is_empty() {
                break;
            } else {
                t.now += Duration::from_secs(10);
                t.ledger.reap(t.now, &mut t.effects);
            }
            world.carry_out(&mut t.effects);
        }
        prop_assert!(world.waiting.is_empty(), "left waiting: {:?}", world.waiting);
    }
}
