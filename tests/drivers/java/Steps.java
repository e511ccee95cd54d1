// PostgreSQL's JDBC driver: every step over one route. See ../README.md for the parameters.

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import javax.net.SocketFactory;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public final class Steps {
    private static final int CONNECTIONS = 8;
    private static final int EXECUTIONS = 20;
    private static final int COPY_ROWS = 10_000;
    private static final long CANCEL_WITHIN_MS = 5_000;

    private static final String HOSTADDR = System.getenv().getOrDefault("PGT_HOSTADDR", "127.0.0.1");
    private static final String TENANT = System.getenv("PGT_TENANT");
    private static final String ROUTE = System.getenv("PGT_ROUTE");
    private static final String TABLE = "drv_jdbc_" + ROUTE + "_" + ProcessHandle.current().pid();

    private interface Step {
        void run() throws Exception;
    }

    /**
     * Dials PGT_HOSTADDR for every name: Java need not resolve `*.localhost`. The driver layers TLS over this socket
     * with the name from the URL, which is what goes into SNI and what the certificate is checked against.
     */
    public static final class HostAddrSocketFactory extends SocketFactory {
        @Override
        public Socket createSocket() {
            return new Socket() {
                @Override
                public void connect(SocketAddress address, int timeout) throws IOException {
                    int port = ((InetSocketAddress) address).getPort();
                    super.connect(new InetSocketAddress(InetAddress.getByName(HOSTADDR), port), timeout);
                }
            };
        }

        @Override
        public Socket createSocket(String host, int port) throws IOException {
            return new Socket(HOSTADDR, port);
        }

        @Override
        public Socket createSocket(String host, int port, InetAddress from, int fromPort) throws IOException {
            return new Socket(HOSTADDR, port, from, fromPort);
        }

        @Override
        public Socket createSocket(InetAddress host, int port) throws IOException {
            return new Socket(HOSTADDR, port);
        }

        @Override
        public Socket createSocket(InetAddress host, int port, InetAddress from, int fromPort) throws IOException {
            return new Socket(HOSTADDR, port, from, fromPort);
        }
    }

    /** Further properties come in pairs of name and value. */
    private static Connection connect(String... further) throws SQLException {
        String server = ROUTE.equals("sni") ? System.getenv("PGT_HOST") : "localhost";
        String user = System.getenv("PGT_USER");
        Properties properties = new Properties();
        properties.setProperty("user", ROUTE.equals("suffix") ? user + "." + TENANT : user);
        properties.setProperty("password", System.getenv("PGT_PASSWORD"));
        properties.setProperty("sslmode", "verify-full");
        properties.setProperty("sslrootcert", System.getenv("PGT_CA"));
        properties.setProperty("socketFactory", HostAddrSocketFactory.class.getName());
        properties.setProperty("prepareThreshold", "1");
        properties.setProperty("connectTimeout", "10");
        for (int i = 0; i < further.length; i += 2) {
            properties.setProperty(further[i], further[i + 1]);
        }
        if (ROUTE.equals("options")) {
            String option = System.getenv().getOrDefault("PGT_TENANT_OPTION", "tenant");
            properties.setProperty("options", "-c " + option + "=" + TENANT);
        }
        String url = "jdbc:postgresql://" + server + ":" + System.getenv("PGT_PORT") + "/"
                + System.getenv("PGT_DATABASE");
        return DriverManager.getConnection(url, properties);
    }

    private static void expect(String what, Object got, Object wanted) {
        if (!wanted.equals(got)) {
            throw new AssertionError(what + ": got " + got + ", wanted " + wanted);
        }
    }

    private static String one(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(query)) {
            expect(query + " has a row", rows.next(), true);
            String value = rows.getString(1);
            expect(query + " has one row", rows.next(), false);
            return value;
        }
    }

    private static void execute(Connection connection, String command) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(command);
        }
    }

    private static void fails(Connection connection, String query, String sqlstate) {
        try {
            execute(connection, query);
        } catch (SQLException error) {
            expect(query, error.getSQLState(), sqlstate);
            return;
        }
        throw new AssertionError(query + ": no error");
    }

    private static void login() throws SQLException {
        try (Connection connection = connect()) {
            expect("SELECT 1", one(connection, "SELECT 1"), "1");
        }
    }

    private static void marker() throws SQLException {
        try (Connection connection = connect()) {
            expect("marker", one(connection, "SELECT tenant FROM marker"), TENANT);
        }
    }

    private static void prepared() throws Exception {
        CyclicBarrier together = new CyclicBarrier(CONNECTIONS);
        ExecutorService threads = Executors.newFixedThreadPool(CONNECTIONS);
        List<Future<Void>> running = new ArrayList<>();
        for (int number = 0; number < CONNECTIONS; number++) {
            int connectionNumber = number;
            running.add(threads.submit(() -> preparedOnOne(connectionNumber, together)));
        }
        threads.shutdown();
        for (Future<Void> one : running) {
            one.get();
        }
    }

    private static Void preparedOnOne(int number, CyclicBarrier together) throws Exception {
        String query = "SELECT tenant, ?::int4 + 1, ?::text FROM marker";
        try (Connection connection = connect(); PreparedStatement statement = connection.prepareStatement(query)) {
            together.await(30, TimeUnit.SECONDS);
            for (int n = 0; n < EXECUTIONS; n++) {
                int value = number * 1000 + n;
                statement.setInt(1, value);
                statement.setString(2, "c" + number + "-" + n);
                try (ResultSet rows = statement.executeQuery()) {
                    expect("prepared statement has a row", rows.next(), true);
                    expect("tenant", rows.getString(1), TENANT);
                    expect("sum", rows.getInt(2), value + 1);
                    expect("echo", rows.getString(3), "c" + number + "-" + n);
                }
            }
        }
        return null;
    }

    /** Rows in COPY's text format exactly as PostgreSQL writes it, so that what comes out can be compared as bytes. */
    private static byte[] copyData() {
        StringBuilder lines = new StringBuilder();
        for (int i = 0; i < COPY_ROWS; i++) {
            String text = i % 97 == 0 ? "\\N" : "row " + i + " gr\u00fc\u00dfe\\ttab \\\\ backslash";
            lines.append(i).append('\t').append(text).append('\n');
        }
        return lines.toString().getBytes(StandardCharsets.UTF_8);
    }

    private static void copy() throws Exception {
        byte[] data = copyData();
        try (Connection connection = connect()) {
            execute(connection, "CREATE TABLE " + TABLE + " (id int PRIMARY KEY, text text)");
            try {
                CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
                long rows = copies.copyIn("COPY " + TABLE + " FROM STDIN", new ByteArrayInputStream(data));
                expect("rows in", rows, (long) COPY_ROWS);
                ByteArrayOutputStream out = new ByteArrayOutputStream();
                copies.copyOut("COPY (SELECT * FROM " + TABLE + " ORDER BY id) TO STDOUT", out);
                MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
                byte[] wanted = sha256.digest(data);
                expect("checksum", MessageDigest.isEqual(sha256.digest(out.toByteArray()), wanted), true);
            } finally {
                execute(connection, "DROP TABLE " + TABLE);
            }
        }
    }

    private static void cancel() throws Exception {
        try (Connection connection = connect(); Statement sleep = connection.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    sleep.cancel();
                } catch (InterruptedException | SQLException error) {
                    System.out.println("cancel: " + error);
                }
            });
            long started = System.nanoTime();
            canceller.start();
            try {
                sleep.execute("SELECT pg_sleep(30)");
                throw new AssertionError("the query was not cancelled");
            } catch (SQLException error) {
                expect("SQLSTATE", error.getSQLState(), "57014");
            }
            canceller.join();
            long milliseconds = (System.nanoTime() - started) / 1_000_000;
            expect("cancel in time", milliseconds < CANCEL_WITHIN_MS, true);
            expect("after the cancel", one(connection, "SELECT 2"), "2");
        }
    }

    private static void transactionError() throws SQLException {
        try (Connection connection = connect()) {
            connection.setAutoCommit(false);
            fails(connection, "SELECT 1/0", "22012");
            fails(connection, "SELECT 1", "25P02");
            connection.rollback();
            expect("after ROLLBACK", one(connection, "SELECT 3"), "3");
            connection.commit();
        }
        rewrittenBatch();
    }

    /**
     * Batches that the driver turns into INSERTs of many rows, and savepoints that it sets before every statement: an
     * error takes back its own statement only.
     */
    private static void rewrittenBatch() throws SQLException {
        String table = TABLE + "_batch";
        try (Connection connection = connect("reWriteBatchedInserts", "true", "autosave", "always")) {
            execute(connection, "CREATE TABLE " + table + " (id int PRIMARY KEY, text text)");
            try {
                connection.setAutoCommit(false);
                for (int round = 0; round < 3; round++) {
                    try (PreparedStatement insert = connection.prepareStatement(
                            "INSERT INTO " + table + " VALUES (?, ?)")) {
                        for (int row = 0; row < 100; row++) {
                            insert.setInt(1, round * 100 + row);
                            insert.setString(2, "row " + row);
                            insert.addBatch();
                        }
                        expect("batch", insert.executeBatch().length, 100);
                    }
                    fails(connection, "INSERT INTO " + table + " VALUES (0, 'there already')", "23505");
                }
                connection.commit();
                expect("rows", one(connection, "SELECT count(*) FROM " + table), "300");
                connection.commit();
            } finally {
                connection.setAutoCommit(true);
                execute(connection, "DROP TABLE " + table);
            }
        }
    }

    private static void step(String name, Step step) {
        try {
            step.run();
        } catch (Exception | AssertionError error) {
            System.out.println("not ok " + name + ": " + error);
            error.printStackTrace(System.out);
            System.exit(1);
        }
        System.out.println("ok " + name);
    }

    public static void main(String[] arguments) {
        step("login", Steps::login);
        step("marker", Steps::marker);
        step("prepared", Steps::prepared);
        step("copy", Steps::copy);
        step("cancel", Steps::cancel);
        step("transaction-error", Steps::transactionError);
    }
}
