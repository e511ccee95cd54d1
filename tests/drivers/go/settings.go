// What both Go programs share: their parameters from the environment, the COPY data and the step lines.

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	connections  = 8
	executions   = 20
	copyRows     = 10000
	cancelWithin = 5 * time.Second
	prepareText  = "SELECT tenant, $1::int4 + 1, $2::text FROM marker"
)

// settings holds the parameters, see ../README.md; server, login and options follow from the route.
type settings struct {
	hostaddr, port, ca, password, database, tenant string
	server, login, options, table                  string
}

func readSettings(driver string) settings {
	env := os.Getenv
	s := settings{hostaddr: env("PGT_HOSTADDR"), port: env("PGT_PORT"), ca: env("PGT_CA"),
		password: env("PGT_PASSWORD"), database: env("PGT_DATABASE"), tenant: env("PGT_TENANT"),
		server: "localhost", login: env("PGT_USER")}
	if s.hostaddr == "" {
		s.hostaddr = "127.0.0.1"
	}
	switch env("PGT_ROUTE") {
	case "sni":
		s.server = env("PGT_HOST")
	case "options":
		option := env("PGT_TENANT_OPTION")
		if option == "" {
			option = "tenant"
		}
		s.options = "-c " + option + "=" + s.tenant
	case "suffix":
		s.login += "." + s.tenant
	default:
		fail("settings", fmt.Errorf("PGT_ROUTE is %q, not sni, options or suffix", env("PGT_ROUTE")))
	}
	s.table = "drv_" + driver + "_" + env("PGT_ROUTE") + "_" + strconv.Itoa(os.Getpid())
	return s
}

// dsn is the connection string, the same for both drivers.
func (s settings) dsn() string {
	quote := func(value string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
	}
	pairs := []string{"host=" + quote(s.server), "port=" + s.port, "user=" + quote(s.login),
		"password=" + quote(s.password), "dbname=" + quote(s.database), "sslmode=verify-full",
		"sslrootcert=" + quote(s.ca), "connect_timeout=10"}
	if s.options != "" {
		pairs = append(pairs, "options="+quote(s.options))
	}
	return strings.Join(pairs, " ")
}

// hostaddr dials PGT_HOSTADDR for every name: nothing has to resolve `*.localhost`.
type hostaddr string

func (h hostaddr) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(string(h), port))
}

func (h hostaddr) Dial(network, address string) (net.Conn, error) {
	return h.DialContext(context.Background(), network, address)
}

func (h hostaddr) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return h.DialContext(ctx, network, address)
}

// copyText is the text of row number i; every 97th is null.
func copyText(i int) (text string, null bool) {
	return fmt.Sprintf("row %d grüße\ttab \\ backslash", i), i%97 == 0
}

// copyLine is one row in COPY's text format exactly as PostgreSQL writes it.
func copyLine(i int, text string, null bool) string {
	if null {
		return fmt.Sprintf("%d\t\\N\n", i)
	}
	return fmt.Sprintf("%d\t%s\n", i, strings.NewReplacer(`\`, `\\`, "\t", `\t`).Replace(text))
}

func expect(what string, got, wanted interface{}) error {
	if got != wanted {
		return fmt.Errorf("%s: got %v, wanted %v", what, got, wanted)
	}
	return nil
}

// atOnce runs one function for each connection and returns the first error.
func atOnce(one func(number int) error) error {
	results := make(chan error, connections)
	for number := 0; number < connections; number++ {
		go func(number int) { results <- one(number) }(number)
	}
	var first error
	for number := 0; number < connections; number++ {
		if err := <-results; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func fail(step string, err error) {
	fmt.Printf("not ok %s: %v\n", step, err)
	os.Exit(1)
}

func run(name string, step func() error) {
	if err := step(); err != nil {
		fail(name, err)
	}
	fmt.Printf("ok %s\n", name)
}
