// What the prometheus-community exporter asks PgBouncer's console, in its way: lib/pq through database/sql, one connection,
// simple queries, columns found by name and read as numbers. See ../README.md for the parameters.

package main

import (
	"database/sql"
	"fmt"
	"os"
	"regexp"
	"strconv"

	_ "github.com/lib/pq"
)

// The exporter's metrics by SHOW command: columns that have to be there and to be numbers.
var numbers = map[string][]string{
	"databases": {"pool_size", "reserve_pool_size", "max_connections", "current_connections", "paused", "disabled"},
	"pools": {"cl_active", "cl_waiting", "cl_active_cancel_req", "cl_waiting_cancel_req", "sv_active", "sv_active_cancel",
		"sv_being_canceled", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait", "maxwait_us"},
	"stats_totals": {"server_assignment_count", "xact_count", "query_count", "bytes_received", "bytes_sent", "xact_time",
		"query_time", "wait_time", "client_parse_count", "server_parse_count", "bind_count"},
}

// What its metrics are told apart by.
var labels = map[string][]string{
	"databases":    {"name", "host", "port", "database", "force_user", "pool_mode"},
	"pools":        {"database", "user", "pool_mode"},
	"stats_totals": {"database"},
}

var lists = []string{"databases", "users", "pools", "free_clients", "used_clients", "login_clients", "free_servers",
	"used_servers", "dns_names", "dns_zones", "dns_queries", "dns_pending"}

// table is an answer with its cells by column.
func table(db *sql.DB, query string) ([]map[string]sql.NullString, error) {
	rows, err := db.Query(query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	var found []map[string]sql.NullString
	for rows.Next() {
		cells, targets := make([]sql.NullString, len(columns)), make([]interface{}, len(columns))
		for i := range cells {
			targets[i] = &cells[i]
		}
		if err := rows.Scan(targets...); err != nil {
			return nil, err
		}
		row := map[string]sql.NullString{}
		for i, column := range columns {
			row[column] = cells[i]
		}
		found = append(found, row)
	}
	return found, rows.Err()
}

func metrics(db *sql.DB, show string) error {
	rows, err := table(db, "SHOW "+show+";")
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return fmt.Errorf("no rows")
	}
	for _, row := range rows {
		for _, column := range labels[show] {
			if _, there := row[column]; !there {
				return fmt.Errorf("no column %s", column)
			}
		}
		for _, column := range numbers[show] {
			if _, err := strconv.ParseFloat(row[column].String, 64); err != nil {
				return fmt.Errorf("column %s: %w", column, err)
			}
		}
	}
	return nil
}

func showLists(db *sql.DB) error {
	rows, err := db.Query("SHOW LISTS;")
	if err != nil {
		return err
	}
	defer rows.Close()
	found := map[string]int64{}
	for rows.Next() {
		var list string
		var items int64
		if err := rows.Scan(&list, &items); err != nil {
			return err
		}
		found[list] = items
	}
	for _, list := range lists {
		if _, there := found[list]; !there {
			return fmt.Errorf("no list %s", list)
		}
	}
	return rows.Err()
}

func showConfig(db *sql.DB) error {
	rows, err := table(db, "SHOW CONFIG;")
	if err != nil {
		return err
	}
	for _, row := range rows {
		if len(row) != 4 {
			return fmt.Errorf("%d columns", len(row))
		}
		if row["key"].String == "max_client_conn" {
			_, err := strconv.ParseFloat(row["value"].String, 64)
			return err
		}
	}
	return fmt.Errorf("no max_client_conn")
}

func showVersion(db *sql.DB) error {
	var version string
	if err := db.QueryRow("SHOW VERSION;").Scan(&version); err != nil {
		return err
	}
	if !regexp.MustCompile(`\d+\.\d+\.\d+`).MatchString(version) {
		return fmt.Errorf("%q", version)
	}
	return nil
}

func main() {
	dsn := fmt.Sprintf("postgres://%s:%s@localhost:%s/pgbouncer?sslmode=verify-full&sslrootcert=%s", os.Getenv("PGT_USER"),
		os.Getenv("PGT_PASSWORD"), os.Getenv("PGT_PORT"), os.Getenv("PGT_CA"))
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		fail("open", err)
	}
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1)
	// Twice, as a scrape follows a scrape on the same connection.
	for scrape := 1; scrape <= 2; scrape++ {
		run("ping", func() error { _, err := table(db, "SHOW STATS"); return err })
		run("version", func() error { return showVersion(db) })
		run("lists", func() error { return showLists(db) })
		run("config", func() error { return showConfig(db) })
		for _, show := range []string{"databases", "stats_totals", "pools"} {
			run(show, func() error { return metrics(db, show) })
		}
	}
}
