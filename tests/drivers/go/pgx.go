// pgx 4 on its own (without database/sql): every step over one route. See ../README.md for the parameters.

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
)

type program struct {
	settings
	config *pgx.ConnConfig
}

func (p program) conn(work func(ctx context.Context, conn *pgx.Conn) error) error {
	ctx, done := context.WithTimeout(context.Background(), time.Minute)
	defer done()
	conn, err := pgx.ConnectConfig(ctx, p.config)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return work(ctx, conn)
}

func sqlstate(err error) string {
	var reported *pgconn.PgError
	if errors.As(err, &reported) {
		return reported.Code
	}
	return fmt.Sprintf("no SQLSTATE (%v)", err)
}

func selects(ctx context.Context, conn *pgx.Conn, query string, wanted int32) error {
	var got int32
	if err := conn.QueryRow(ctx, query).Scan(&got); err != nil {
		return err
	}
	return expect(query, got, wanted)
}

func (p program) login() error {
	return p.conn(func(ctx context.Context, conn *pgx.Conn) error { return selects(ctx, conn, "SELECT 1", 1) })
}

func (p program) marker() error {
	return p.conn(func(ctx context.Context, conn *pgx.Conn) error {
		var tenant string
		if err := conn.QueryRow(ctx, "SELECT tenant FROM marker").Scan(&tenant); err != nil {
			return err
		}
		return expect("marker", tenant, p.tenant)
	})
}

func (p program) prepared() error {
	return atOnce(func(number int) error {
		return p.conn(func(ctx context.Context, conn *pgx.Conn) error {
			if _, err := conn.Prepare(ctx, "by-name", prepareText); err != nil {
				return err
			}
			for n := 0; n < executions; n++ {
				value, wanted := int32(number*1000+n), fmt.Sprintf("c%d-%d", number, n)
				var tenant, echo string
				var next int32
				if err := conn.QueryRow(ctx, "by-name", value, wanted).Scan(&tenant, &next, &echo); err != nil {
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

func (p program) copy() error {
	var data bytes.Buffer
	for i := 0; i < copyRows; i++ {
		text, null := copyText(i)
		data.WriteString(copyLine(i, text, null))
	}
	wanted := fmt.Sprintf("%x", sha256.Sum256(data.Bytes()))
	return p.conn(func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "CREATE TABLE "+p.table+" (id int PRIMARY KEY, text text)"); err != nil {
			return err
		}
		defer conn.Exec(ctx, "DROP TABLE "+p.table)
		raw := conn.PgConn()
		if _, err := raw.CopyFrom(ctx, &data, "COPY "+p.table+" FROM STDIN"); err != nil {
			return err
		}
		got := sha256.New()
		if _, err := raw.CopyTo(ctx, got, "COPY (SELECT * FROM "+p.table+" ORDER BY id) TO STDOUT"); err != nil {
			return err
		}
		return expect("checksum", fmt.Sprintf("%x", got.Sum(nil)), wanted)
	})
}

// cancel uses the driver's own CancelRequest, which goes over a plain connection.
func (p program) cancel() error {
	return p.conn(func(ctx context.Context, conn *pgx.Conn) error {
		sent := make(chan error, 1)
		started := time.Now()
		go func() {
			time.Sleep(500 * time.Millisecond)
			sent <- conn.PgConn().CancelRequest(ctx)
		}()
		_, err := conn.Exec(ctx, "SELECT pg_sleep(30)")
		if err := expect("SQLSTATE", sqlstate(err), "57014"); err != nil {
			return err
		}
		if err := <-sent; err != nil {
			return fmt.Errorf("CancelRequest: %w", err)
		}
		if err := expect("cancel in time", time.Since(started) < cancelWithin, true); err != nil {
			return err
		}
		return selects(ctx, conn, "SELECT 2", 2)
	})
}

func (p program) transactionError() error {
	return p.conn(func(ctx context.Context, conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		for _, one := range [][2]string{{"SELECT 1/0", "22012"}, {"SELECT 1", "25P02"}} {
			_, err := tx.Exec(ctx, one[0])
			if err := expect(one[0], sqlstate(err), one[1]); err != nil {
				return err
			}
		}
		if err := tx.Rollback(ctx); err != nil {
			return err
		}
		return selects(ctx, conn, "SELECT 3", 3)
	})
}

func main() {
	s := readSettings("pgx")
	config, err := pgx.ParseConfig(s.dsn())
	if err != nil {
		fail("settings", err)
	}
	config.DialFunc = hostaddr(s.hostaddr).DialContext
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{s.hostaddr}, nil }
	p := program{s, config}
	run("login", p.login)
	run("marker", p.marker)
	run("prepared", p.prepared)
	run("copy", p.copy)
	run("cancel", p.cancel)
	run("transaction-error", p.transactionError)
}
