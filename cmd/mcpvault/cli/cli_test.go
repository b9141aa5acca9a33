package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/manage"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/observe"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/policy"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mcpvault": func() {
			os.Exit(cli.Run(context.Background(), cli.Config{
				Args: os.Args[1:], Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: "test",
				Commands: talking(),
			}))
		},
	})
}

// talking are all commands that talk to servers; those that start them are tested where they are.
func talking() []func(*cli.App) *cobra.Command {
	return slices.Concat(manage.Commands(), observe.Commands(), []func(*cli.App) *cobra.Command{policy.Command})
}

// TestScripts runs the dialogues in testdata: what is typed, what is printed where, and the exit status.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status,
		},
		Setup: func(env *testscript.Env) error {
			tb, isTB := env.T().(testing.TB)
			if !isTB {
				tb = t
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			dead := "http://" + l.Addr().String()
			_ = l.Close()
			f := &contexts.File{}
			f.Set("test", &contexts.Context{
				AdminURL: controlPlane(tb), AdminToken: goodToken, Tenant: "acme", MCPURLs: []string{dead + "/mcp", fakeCell(tb)},
				Tokens: map[string]string{"alice": "alice", "old": "expired"},
			})
			f.Set("gone", &contexts.Context{AdminURL: dead, AdminToken: goodToken})
			f.Set("stranger", &contexts.Context{AdminURL: f.Contexts["test"].AdminURL, AdminToken: "bad"})
			config := env.WorkDir + "/config.yaml"
			env.Setenv("MCPVAULT_CONFIG", config)
			env.Setenv("ADMIN", f.Contexts["test"].AdminURL)
			env.Setenv("DEAD", dead)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // A second for each command, otherwise.
			return contexts.Save(config, f)
		},
	})
}

// status runs a command and compares its exit status: `status 4 mcpvault …`.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command…")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// run runs one command in this process.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = cli.Run(t.Context(), cli.Config{Args: args, Env: []string{"HOME=" + t.TempDir()}, Stdout: &out, Stderr: &errs, Stdin: strings.NewReader(""), Dir: t.TempDir(), Version: "test", Commands: talking()})
	return code, out.String(), errs.String()
}

// commands finds every command by reading the help, as a person would.
func commands(t *testing.T, path []string) [][]string {
	t.Helper()
	code, out, errs := run(t, append(path, "--help")...)
	if code != 0 || errs != "" {
		t.Fatalf("%v --help: %d %s", path, code, errs)
	}
	all := [][]string{path}
	_, list, found := strings.Cut(out, "\nCommands:\n")
	if !found {
		return all
	}
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		name := strings.Fields(line)[0]
		all = append(all, commands(t, append(append([]string{}, path...), name))...)
	}
	return all
}

func TestEveryHelpBeginsWithAnExampleThatNamesTheCommand(t *testing.T) {
	t.Parallel()
	all := commands(t, nil)
	if len(all) < 60 {
		t.Fatalf("only %d commands were found", len(all))
	}
	for _, path := range all {
		_, out, _ := run(t, append(path, "--help")...)
		want := strings.Join(append([]string{"mcpvault"}, path...), " ")
		head, _, _ := strings.Cut(out, "\n\n")
		if !strings.HasPrefix(out, "Examples:\n  ") || (!strings.Contains(head, want) && !strings.Contains(head, "mcpvault help")) {
			t.Errorf("%s --help begins with %q", want, head)
		}
		if !strings.Contains(out, "\nUsage:\n") {
			t.Errorf("%s --help has no usage", want)
		}
	}
}

func TestTheCommandsThatScriptsRelyOnAreThere(t *testing.T) {
	t.Parallel()
	have := map[string]bool{}
	for _, path := range commands(t, nil) {
		have[strings.Join(path, " ")] = true
	}
	for _, want := range []string{
		"login", "logout", "whoami", "context list", "context use", "context add", "context rm",
		"org list", "org get", "org create", "team list", "team get", "team create", "team add-member", "team remove-member",
		"user list", "user get", "user create", "user disable", "user enable", "role list", "role get", "role create", "role assign", "role unassign",
		"grant", "revoke", "grants list", "server add", "server list", "server get", "server versions", "server scan", "server approve", "server rm",
		"token create", "token list", "token revoke", "mcp list", "mcp call", "cell list", "cell status", "cell members", "cell add", "cell remove", "cell step-down", "cell drain",
		"snapshot list", "snapshot get", "snapshot verify", "audit tail", "audit get", "audit verify", "audit search", "audit changes",
		"access explain", "access who-can", "access what-can", "access replay", "kill", "doctor", "completion bash", "version",
	} {
		if !have[want] {
			t.Errorf("mcpvault %s is missing", want)
		}
	}
}

func TestEveryFlagMayComeFromTheEnvironment(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), cli.Config{
		Args: []string{"version"}, Env: []string{"MCPVAULT_OUTPUT=json", "MCPVAULT_TIMEOUT=5s"}, Stdout: &out, Stderr: &errs, Version: "v9",
	})
	if code != 0 || out.String() != "{\n  \"version\": \"v9\"\n}\n" {
		t.Fatal(code, out.String(), errs.String())
	}
	errs.Reset()
	code = cli.Run(t.Context(), cli.Config{Args: []string{"version"}, Env: []string{"MCPVAULT_TIMEOUT=soon"}, Stdout: &out, Stderr: &errs})
	if code != 2 || !strings.Contains(errs.String(), "MCPVAULT_TIMEOUT") {
		t.Fatal(code, errs.String())
	}
}

func TestCompletionKnowsTheShells(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, errs := run(t, "completion", shell); code != 0 || !strings.Contains(out, "mcpvault") {
			t.Errorf("%s: %d %s", shell, code, errs)
		}
	}
	if _, out, _ := run(t, "__complete", "version", "-o", ""); !strings.Contains(out, "yaml") {
		t.Errorf("formats are not completed: %s", out)
	}
}

func ExampleRun() {
	fmt.Println(cli.Run(context.Background(), cli.Config{Args: []string{"version"}, Stdout: os.Stdout, Stderr: os.Stderr, Version: "v1.0.0"}))
	// Output:
	// version:  v1.0.0
	// 0
}
