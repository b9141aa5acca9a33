package pgdev_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/mcpvault/mcpvault/kit/pgdev"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// childDir names the environment variable that makes this test binary a process that starts a server and waits.
const childDir = "PGDEV_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}

func child(dir string) int {
	s, err := pgdev.Start(context.Background(), pgdev.Config{Dir: dir})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println(s.PID(), s.URL())
	<-s.Done()
	return 0
}

func start(t *testing.T, cfg pgdev.Config) *pgdev.Server {
	t.Helper()
	s, err := pgdev.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openDir is a temporary directory that an unprivileged user can reach; t.TempDir is not.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgdev-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func exec1(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	var out string
	if err := conn.QueryRow(t.Context(), sql).Scan(&out); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

func TestDataSurvivesStopAndKill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	s := start(t, pgdev.Config{Dir: dir})
	exec1(t, s.URL(), "create table kept (x text)")
	exec1(t, s.URL(), "insert into kept values ('a row')")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"stop", "kill", "kill"} {
		began := time.Now()
		s = start(t, pgdev.Config{Dir: dir})
		t.Logf("start after %s: %v", end, time.Since(began))
		if got := exec1(t, s.URL(), "select x from kept"); got != "a row" {
			t.Fatalf("after %s: %q", end, got)
		}
		s.Kill()
		if syscall.Kill(s.PID(), 0) == nil {
			t.Fatal("Kill must wait until the process is gone")
		}
	}
}

func TestTheServerIsDurableAndPrivate(t *testing.T) {
	t.Parallel()
	s := start(t, pgdev.Config{Dir: filepath.Join(openDir(t), "pg")})
	for setting, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "listen_addresses": "", "TimeZone": "UTC",
		"server_encoding": "UTF8", "lc_collate": "C.UTF-8",
	} {
		if got := exec1(t, s.URL(), "select current_setting('"+setting+"')"); got != want {
			t.Errorf("%s is %q, not %q", setting, got, want)
		}
	}
	run := exec1(t, s.URL(), "select current_setting('unix_socket_directories')")
	info, err := os.Stat(strings.Trim(run, `"`))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the socket's directory is %v", info.Mode())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid == 0 {
		t.Errorf("the socket's directory belongs to uid %v", st.Uid)
	}
	if pgid, err := syscall.Getpgid(s.PID()); err != nil || pgid != s.PID() {
		t.Errorf("a terminal's signals would reach the server: group %d, %v", pgid, err)
	}
}

func TestADirectoryServesOneServer(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	s := start(t, pgdev.Config{Dir: dir})
	_, err := pgdev.Start(t.Context(), pgdev.Config{Dir: dir})
	if problem.CodeOf(err) != problem.Conflict {
		t.Fatalf("got %v", err)
	}
	if got := exec1(t, s.URL(), "select 'alive'"); got != "alive" {
		t.Fatal("the first one must not notice")
	}
}

func TestEphemeralLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mine := filepath.Join(dir, "a-file-of-the-caller")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, pgdev.Config{Dir: dir, Ephemeral: true})
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || left[0].Name() != filepath.Base(mine) {
		t.Fatalf("left: %v", left)
	}
	anonymous := start(t, pgdev.Config{Ephemeral: true})
	if err := anonymous.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(anonymous.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s: %v", anonymous.Dir(), err)
	}
}

func TestAnOrphanEndsAndItsDataIsFoundAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	word, url, _ := strings.Cut(strings.TrimSpace(line), " ")
	pid, err := strconv.Atoi(word)
	if err != nil {
		t.Fatal(line)
	}
	exec1(t, url, "create table kept as select 'a row'::text as x")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
	began := time.Now()
	s := start(t, pgdev.Config{Dir: dir})
	t.Logf("start after the starter was killed: %v", time.Since(began))
	if got := exec1(t, s.URL(), "select x from kept"); got != "a row" {
		t.Fatal(got)
	}
	if s.PID() == pid {
		t.Fatal("the orphan is still there")
	}
}

func TestAStalePidFileThatNamesALivingProcessIsNotBelieved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	s := start(t, pgdev.Config{Dir: dir})
	s.Kill()
	// As after a reboot: the number belongs to somebody else now.
	stale := filepath.Join(dir, "data", "postmaster.pid")
	b, err := os.ReadFile(stale)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n")
	if err := os.WriteFile(stale, []byte(strconv.Itoa(os.Getppid())+"\n"+rest), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, pgdev.Config{Dir: dir})
}

func TestRootWithAPrivateHomeKeepsItsDataWhereTheServerCanGo(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	private := t.TempDir()
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(private, "deep", "pg")
	s := start(t, pgdev.Config{Dir: dir})
	elsewhere := s.Dir()
	t.Cleanup(func() {
		if err := os.RemoveAll(elsewhere); err != nil {
			t.Error(err)
		}
	})
	if strings.HasPrefix(elsewhere, private) {
		t.Fatalf("the data is in %s", elsewhere)
	}
	exec1(t, s.URL(), "create table kept as select 'a row'::text as x")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = start(t, pgdev.Config{Dir: dir})
	if got := exec1(t, s.URL(), "select x from kept"); got != "a row" || s.Dir() != elsewhere {
		t.Fatalf("%q in %s", got, s.Dir())
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	// Whoever removes the directory wants to start afresh.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s = start(t, pgdev.Config{Dir: dir})
	if got := exec1(t, s.URL(), "select coalesce(to_regclass('kept')::text, 'gone')"); got != "gone" {
		t.Fatal("the old data came back")
	}
}

func TestALongPathStillHasASocket(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), strings.Repeat("long", 30), "pg, with a comma")
	s := start(t, pgdev.Config{Dir: dir, Ephemeral: true})
	if got := exec1(t, s.URL(), "select 'here'"); got != "here" {
		t.Fatal(got)
	}
}

func TestAFailedStartSaysWhy(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	s := start(t, pgdev.Config{Dir: dir})
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("9.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := pgdev.Start(t.Context(), pgdev.Config{Dir: dir})
	if problem.CodeOf(err) != problem.Unavailable || !strings.Contains(err.Error(), "incompatible") {
		t.Fatalf("got %v", err)
	}
}

func TestDoneTellsThatTheServerWasKilledByAnotherHand(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pg")
	s := start(t, pgdev.Config{Dir: dir})
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("Done is still open")
	}
	start(t, pgdev.Config{Dir: dir})
}
