// PostgreSQL's JDBC driver: each quota hit once, what the driver makes of it, and work afterwards.
//
// PGT_QUOTAS has one line for each quota: its name, user, password and database of a tenant with that quota.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;
import org.postgresql.util.PSQLException;

public final class Quotas {
    private static final String LARGE = "SELECT repeat('x', 1000) FROM generate_series(1, 3000)";

    /** What has to fail. */
    private interface Work {
        void run() throws SQLException;
    }

    private final String quota;
    private final String[] tenant;

    private Quotas(String line) {
        tenant = line.split(" ");
        quota = tenant[0];
    }

    private Connection connect() throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", tenant[1]);
        properties.setProperty("password", tenant[2]);
        properties.setProperty("sslmode", "disable");
        return DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + System.getenv("PGT_PORT") + "/" + tenant[3],
                properties);
    }

    private static void expect(String what, Object got, Object wanted) {
        if (!wanted.equals(got)) {
            throw new AssertionError(what + ": got " + got + ", wanted " + wanted);
        }
    }

    private static void run(Connection connection, String query) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(query)) {
            while (rows.next()) {
                rows.getString(1);
            }
        }
    }

    private void refused(String sqlState, Work work) {
        try {
            work.run();
        } catch (SQLException error) {
            System.out.println("# " + quota + ": " + error.getSQLState() + ": " + error.getMessage().replace('\n', ';'));
            expect("SQLSTATE", error.getSQLState(), sqlState);
            if (error instanceof PSQLException && ((PSQLException) error).getServerErrorMessage() != null) {
                String detail = ((PSQLException) error).getServerErrorMessage().getDetail();
                expect("it names the quota", detail.contains(quota), true);
            }
            return;
        }
        throw new AssertionError("no error");
    }

    private static void works(Connection connection) throws SQLException {
        expect("closed", connection.isClosed(), false);
        run(connection, "SELECT 1");
    }

    private static void untilItWorks(Connection connection) throws Exception {
        long deadline = System.nanoTime() + 15_000_000_000L;
        while (true) {
            try {
                works(connection);
                return;
            } catch (SQLException error) {
                expect("SQLSTATE", error.getSQLState(), "53400");
                expect("in time", System.nanoTime() < deadline, true);
                Thread.sleep(300);
            }
        }
    }

    /** The session has ended: the driver knows it, and a new connection works. */
    private void ended(Connection connection) throws SQLException {
        expect("valid", connection.isValid(2), false);
        try (Connection again = connect()) {
            works(again);
        }
    }

    private void hit() throws Exception {
        try (Connection connection = connect()) {
            switch (quota) {
                case "max_clients":
                    refused("53300", () -> connect().close());
                    works(connection);
                    break;
                case "max_transactions":
                    try (Connection other = connect()) {
                        connection.setAutoCommit(false);
                        works(connection);
                        refused("53400", () -> run(other, "SELECT 1"));
                        connection.commit();
                        works(other);
                    }
                    break;
                case "transactions_per_second":
                    works(connection);
                    refused("53400", () -> {
                        for (int i = 0; i < 50; i++) {
                            run(connection, "SELECT 1");
                        }
                    });
                    untilItWorks(connection);
                    break;
                case "bytes_per_second":
                    run(connection, LARGE);
                    refused("53400", () -> run(connection, "SELECT 1"));
                    untilItWorks(connection);
                    break;
                case "backend_seconds_per_minute":
                    run(connection, "SELECT pg_sleep(1.05)");
                    refused("53400", () -> run(connection, "SELECT 1"));
                    untilItWorks(connection);
                    break;
                case "max_result":
                    refused("53400", () -> run(connection, LARGE));
                    works(connection);
                    connection.setAutoCommit(false);
                    works(connection);
                    refused("53400", () -> run(connection, LARGE));
                    connection.rollback();
                    works(connection);
                    connection.commit();
                    break;
                case "query_timeout":
                    refused("57014", () -> run(connection, "SELECT pg_sleep(30)"));
                    works(connection);
                    break;
                case "transaction_timeout":
                    connection.setAutoCommit(false);
                    refused("25P04", () -> run(connection, "SELECT pg_sleep(30)"));
                    ended(connection);
                    break;
                case "idle_in_transaction_timeout":
                    connection.setAutoCommit(false);
                    works(connection);
                    Thread.sleep(1000);
                    refused("25P03", () -> run(connection, "SELECT 1"));
                    ended(connection);
                    break;
                case "idle_session_timeout":
                    works(connection);
                    Thread.sleep(1000);
                    refused("57P05", () -> run(connection, "SELECT 1"));
                    ended(connection);
                    break;
                default:
                    throw new AssertionError("no such quota");
            }
        }
    }

    public static void main(String[] arguments) {
        boolean failed = false;
        for (String line : System.getenv("PGT_QUOTAS").split("\n")) {
            Quotas quotas = new Quotas(line);
            try {
                quotas.hit();
                System.out.println("ok " + quotas.quota);
            } catch (Throwable error) {
                System.out.println("not ok " + quotas.quota + ": " + error);
                failed = true;
            }
        }
        System.exit(failed ? 1 : 0);
    }
}
