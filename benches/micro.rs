//! Microbenchmarks of what every request and every login pays, without I/O: `make bench`, or
//! `make bench ARGS="-- relay"` for some of them.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgtenant::auth::{ClientSecret, ScramClient, ScramServer, ScramVerifier};
use pgtenant::backend::{BackendState, Statements};
use pgtenant::pool::ledger::{Bound, Checkout, Effect, Effects, Fairness, Ledger, PoolKey, PoolSettings, Share, Slot};
use pgtenant::relay::{Flow, FlowLimits, SessionState, Splice};
use pgtenant::sql;
use pgtenant::wire::Opening;
use pgtenant::wire::messages::framed;

type TestLedger = Ledger<u32, u32, &'static str>;
type TestEffects = Effects<u32, u32, &'static str>;

/// An instance with 16 backends for so many tenants, each with a pool; all are the first one's if it wants them.
fn instance(tenants: usize, now: Instant) -> (TestLedger, Vec<PoolKey>) {
    let fairness =
        Fairness { enabled: true, quantum: Duration::from_millis(100), lend_after: Duration::from_secs(1), shed: None };
    let mut ledger = Ledger::new(Bound { max: 16, max_connecting: 16 }, fairness, now);
    let settings = PoolSettings {
        max: 16,
        guaranteed: 0,
        min: 0,
        idle_timeout: Duration::from_secs(600),
        lifetime: Duration::from_secs(3600),
        retry: Duration::from_millis(100),
        retry_max: Duration::from_secs(15),
    };
    let pools = (0..tenants).map(|number| {
        let guaranteed = if number == 0 { 16 } else { 0 };
        let tenant = ledger.add_tenant(Share { max: 16, max_connecting: 16, guaranteed, weight: 1 });
        let role = ledger.add_role(tenant);
        ledger.add_pool(role, settings, true)
    });
    let pools = pools.collect();
    (ledger, pools)
}

/// A backend in the caller's hands, opened for it.
fn opened(ledger: &mut TestLedger, pool: PoolKey, now: Instant, effects: &mut TestEffects) -> Slot<u32> {
    let _ = ledger.checkout(pool, now, || 0, effects);
    effects.clear();
    ledger.opened(pool, 0, now, effects);
    let Some(Effect::Grant(_, _, slot)) = effects.pop() else { panic!("the waiter gets the backend: {effects:?}") };
    slot
}

/// Warm, with nobody who waits; with a queue in the own pool; with many tenants that wait for the instance.
fn ledger(c: &mut Criterion) {
    let (now, mut effects) = (Instant::now(), TestEffects::new());
    let (mut ledger, pools) = instance(1, now);
    let slot = opened(&mut ledger, pools[0], now, &mut effects);
    ledger.release(pools[0], slot, now, &mut effects);
    c.bench_function("ledger/checkout and release", |b| {
        b.iter(|| {
            let Checkout::Ready(slot) = ledger.checkout(pools[0], now, || 0, &mut effects) else {
                panic!("idle one taken")
            };
            ledger.release(pools[0], black_box(slot), now, &mut effects);
        });
    });
    for (name, tenants) in [("ledger/hand-off in a queue", 1), ("ledger/hand-off beside 100 tenants that wait", 101)] {
        let (mut ledger, pools) = instance(tenants, now);
        let mut slots: Vec<Slot<u32>> = (0..16).map(|_| opened(&mut ledger, pools[0], now, &mut effects)).collect();
        for pool in &pools[1..] {
            let _ = ledger.checkout(*pool, now, || 0, &mut effects);
        }
        effects.clear();
        let mut slot = slots.pop();
        c.bench_function(name, |b| {
            b.iter(|| {
                let _ = ledger.checkout(pools[0], now, || 0, &mut effects);
                ledger.release(pools[0], slot.take().expect("it came back"), now, &mut effects);
                let Some(Effect::Grant(_, _, granted)) = effects.pop() else { panic!("the waiter's turn") };
                slot = Some(granted);
            });
        });
    }
}

fn all(parts: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, payload) in parts {
        framed(&mut out, *tag, &[payload]);
    }
    out
}

/// One client on one backend.
struct Line {
    flow: Flow,
    backend: BackendState,
    replies: Vec<u8>,
}

impl Line {
    fn new() -> Self {
        let limits = FlowLimits {
            max_message: 1 << 30,
            max_prepared_per_client: 1000,
            max_prepared_per_backend: 200,
            max_prepared_size: 1 << 20,
            cache_unnamed: true,
        };
        let flow = Flow::new(1, limits, false, SessionState::default(), Arc::<Statements>::default());
        Line { flow, backend: BackendState::default(), replies: Vec::new() }
    }

    /// Relays a request and its whole answer.
    fn exchange(&mut self, request: &[u8], answer: &[u8]) {
        let mut splice = Splice::new(request);
        let taken = self.flow.requests(&mut self.backend, request, &mut splice, &mut self.replies);
        black_box((taken.expect("a good request"), splice.bytes()));
        let mut splice = Splice::new(answer);
        let consumed = self.flow.responses(&mut self.backend, answer, &mut splice);
        black_box((consumed.expect("a good answer"), splice.bytes()));
        assert!(self.flow.is_free());
        self.replies.clear();
        self.flow.take_figures();
    }
}

const ROW: &[u8] = b"\0\x01\0\0\0\x0254";
const COLUMNS: &[u8] = b"\0\x01abalance\0\0\0\x40\0\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";

fn relay(c: &mut Criterion) {
    let mut group = c.benchmark_group("relay");
    let mut line = Line::new();
    let query = all(&[(b'Q', b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;\0")]);
    let answer = all(&[(b'T', COLUMNS), (b'D', ROW), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
    group.bench_function("simple query", |b| b.iter(|| line.exchange(&query, &answer)));

    let statement = b"s1\0SELECT abalance FROM pgbench_accounts WHERE aid = $1\0\0\0";
    let prepare = all(&[(b'P', statement), (b'S', b"")]);
    line.exchange(&prepare, &all(&[(b'1', b""), (b'Z', b"I")]));
    // Bind is rewritten to the statement's name on the backend; the rest passes as it is.
    let batch =
        all(&[(b'B', b"\0s1\0\0\0\0\x01\0\0\0\x044711\0\0"), (b'D', b"P\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
    let answer = all(&[(b'2', b""), (b'T', COLUMNS), (b'D', ROW), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
    group.bench_function("extended batch with a renamed statement", |b| b.iter(|| line.exchange(&batch, &answer)));

    let mut rows = all(&[(b'T', COLUMNS)]);
    for _ in 0..1000 {
        framed(&mut rows, b'D', &[ROW]);
    }
    rows.extend(all(&[(b'C', b"SELECT 1000\0"), (b'Z', b"I")]));
    group.throughput(Throughput::Elements(1000));
    group.bench_function("1,000 DataRows", |b| b.iter(|| line.exchange(&query, &rows)));
    group.finish();
}

fn scan_of_statements(c: &mut Criterion) {
    let mut group = c.benchmark_group("look");
    let short = b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;".to_vec();
    let long = b"SELECT o.id, o.created_at, c.name FROM orders o JOIN customers c ON c.id = o.customer_id \
        WHERE o.tenant_id = $1 AND o.state = ANY ($2) ORDER BY o.created_at DESC LIMIT 50; "
        .repeat(6);
    for (name, sql) in [("short", short), ("1 KiB", long)] {
        group.throughput(Throughput::Bytes(sql.len() as u64));
        group.bench_function(name, |b| b.iter(|| sql::look(black_box(&sql), true)));
    }
    group.finish();
}

/// The server's two steps against a verifier; the client's own work is not measured.
fn scram(c: &mut Criterion) {
    let (verifier, keys) = ScramVerifier::generate("open sesame");
    let begin = || ScramClient::new(ClientSecret::Keys(keys.clone()), None, false);
    let server = || ScramServer::new(verifier.clone(), true, None);
    c.bench_function("scram server/client-first", |b| {
        let (mechanism, first) = begin().first();
        b.iter_batched(server, |server| server.client_first(mechanism, &first), BatchSize::SmallInput);
    });
    c.bench_function("scram server/client-final", |b| {
        let ready = || {
            let client = begin();
            let (mechanism, first) = client.first();
            let (server, answer) = server().client_first(mechanism, &first).expect("a good client-first-message");
            let (_, last) = client.server_first(&answer).expect("a good server-first-message");
            (server, last)
        };
        b.iter_batched(
            ready,
            |(server, last)| server.client_final(&last).expect("the right proof"),
            BatchSize::SmallInput,
        );
    });
}

fn startup(c: &mut Criterion) {
    let parameters = b"user\0app.acme\0database\0acme\0application_name\0orders\0client_encoding\0UTF8\0\
        options\0-c tenant=acme -c search_path=app\0\0";
    let length = (8 + parameters.len() as u32).to_be_bytes();
    let packet = [&length[..], &[0, 3, 0, 0], parameters].concat();
    c.bench_function("wire/StartupMessage", |b| b.iter(|| Opening::parse(black_box(&packet))));
}

criterion_group!(benches, ledger, relay, scan_of_statements, scram, startup);
criterion_main!(benches);
