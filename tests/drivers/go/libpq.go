// lib/pq through database/sql: every step over one route. See ../README.md for the parameters.

package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"
)

type program struct {
	settings
	db *sql.DB
}

// conn takes one connection out of database/sql's pool, so that each step knows on which one it runs.
func (p program) conn(work func(ctx context.Context, conn *sql.Conn) error) error {
	ctx, done := context.WithTimeout(context.Background(), time.Minute)
	defer done()
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return work(ctx, conn)
}

func sqlstate(err error) string {
	var reported *pq.Error
	if errors.As(err, &reported) {
		return string(reported.Code)
	}
	return fmt.Sprintf("no SQLSTATE (%v)", err)
}

func (p program) login() error {
	return p.conn(func(ctx context.Context, conn *sql.Conn) error {
		var one int
		if err := conn.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
			return err
		}
		return expect("SELECT 1", one, 1)
	})
}

func (p program) marker() error {
	return p.conn(func(ctx context.Context, conn *sql.Conn) error {
		var tenant string
		if err := conn.QueryRowContext(ctx, "SELECT tenant FROM marker").Scan(&tenant); err != nil {
			return err
		}
		return expect("marker", tenant, p.tenant)
	})
}

func (p program) prepared() error {
	return atOnce(func(number int) error {
		return p.conn(func(ctx context.Context, conn *sql.Conn) error {
			statement, err := conn.PrepareContext(ctx, prepareText)
			if err != nil {
				return err
			}
			defer statement.Close()
			for n := 0; n < executions; n++ {
				value, wanted := number*1000+n, fmt.Sprintf("c%d-%d", number, n)
				var tenant, echo string
				var next int
				if err := statement.QueryRowContext(ctx, value, wanted).Scan(&tenant, &next, &echo); err != nil {
					return err
				}
				got := fmt.Sprint(tenant, next, echo)
				if err := expect("prepared statement", got, fmt.Sprint(p.tenant, value+1, wanted)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// copy sends the rows by COPY. lib/pq has no COPY TO: they are read back by a plain query.
func (p program) copy() error {
	return p.conn(func(ctx context.Context, conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, "CREATE TABLE "+p.table+" (id int PRIMARY KEY, text text)"); err != nil {
			return err
		}
		defer conn.ExecContext(ctx, "DROP TABLE "+p.table)
		wanted := sha256.New()
		if err := p.copyIn(ctx, conn, func(line string) { wanted.Write([]byte(line)) }); err != nil {
			return err
		}
		rows, err := conn.QueryContext(ctx, "SELECT id, text FROM "+p.table+" ORDER BY id")
		if err != nil {
			return err
		}
		defer rows.Close()
		got := sha256.New()
		for rows.Next() {
			var id int
			var text sql.NullString
			if err := rows.Scan(&id, &text); err != nil {
				return err
			}
			got.Write([]byte(copyLine(id, text.String, !text.Valid)))
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return expect("checksum", fmt.Sprintf("%x", got.Sum(nil)), fmt.Sprintf("%x", wanted.Sum(nil)))
	})
}

// copyIn needs a transaction: lib/pq accepts COPY only inside one.
func (p program) copyIn(ctx context.Context, conn *sql.Conn, sent func(line string)) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	statement, err := tx.PrepareContext(ctx, pq.CopyIn(p.table, "id", "text"))
	if err != nil {
		return err
	}
	for i := 0; i < copyRows; i++ {
		text, null := copyText(i)
		var value interface{}
		if !null {
			value = text
		}
		if _, err := statement.ExecContext(ctx, i, value); err != nil {
			return err
		}
		sent(copyLine(i, text, null))
	}
	if _, err := statement.ExecContext(ctx); err != nil {
		return err
	}
	if err := statement.Close(); err != nil {
		return err
	}
	return tx.Commit()
}

// cancel ends the context of a running query: lib/pq sends an encrypted CancelRequest and gives the connection up by
// itself. So instead of the same connection it is shown that the pool goes on: database/sql throws the given-up one
// away and repeats the query on another.
func (p program) cancel() error {
	err := p.conn(func(ctx context.Context, conn *sql.Conn) error {
		short, stop := context.WithTimeout(ctx, 500*time.Millisecond)
		defer stop()
		started := time.Now()
		_, err := conn.ExecContext(short, "SELECT pg_sleep(30)")
		if err := expect("SQLSTATE", sqlstate(err), "57014"); err != nil {
			return err
		}
		return expect("cancel in time", time.Since(started) < cancelWithin, true)
	})
	if err != nil {
		return err
	}
	var two int
	if err := p.db.QueryRow("SELECT 2").Scan(&two); err != nil {
		return fmt.Errorf("after the cancel: %w", err)
	}
	return expect("after the cancel", two, 2)
}

func (p program) transactionError() error {
	return p.conn(func(ctx context.Context, conn *sql.Conn) error {
		for _, one := range [][2]string{{"BEGIN", ""}, {"SELECT 1/0", "22012"}, {"SELECT 1", "25P02"}, {"ROLLBACK", ""}} {
			_, err := conn.ExecContext(ctx, one[0])
			if one[1] == "" && err != nil {
				return err
			}
			if one[1] != "" && sqlstate(err) != one[1] {
				return fmt.Errorf("%s: got %s, wanted %s", one[0], sqlstate(err), one[1])
			}
		}
		var three int
		if err := conn.QueryRowContext(ctx, "SELECT 3").Scan(&three); err != nil {
			return err
		}
		return expect("after ROLLBACK", three, 3)
	})
}

func main() {
	s := readSettings("libpq")
	connector, err := pq.NewConnector(s.dsn())
	if err != nil {
		fail("settings", err)
	}
	connector.Dialer(hostaddr(s.hostaddr))
	p := program{s, sql.OpenDB(connector)}
	defer p.db.Close()
	run("login", p.login)
	run("marker", p.marker)
	run("prepared", p.prepared)
	run("copy", p.copy)
	run("cancel", p.cancel)
	run("transaction-error", p.transactionError)
}
