package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/cmd/lab/logtest"
	"github.com/kingmaker-io/kingmaker/reconciler/source/render"
	"github.com/kingmaker-io/kingmaker/schema"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// asReconcile in the environment makes this test binary the program reconcile.
const asReconcile = "KINGMAKER_TEST_AS_RECONCILE"

// TestMain has the test binary stand in for the program: it is called reconcile
// by the scripts, and render.ChildName by its own renders.
func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == render.ChildName:
		// Not os.Exit: the race detector would sleep a second in it, and
		// GORACE cannot tell it not to, for a render has no environment.
		syscall.Exit(render.Child(os.Stdin, os.Stdout))
	case os.Getenv(asReconcile) != "":
		main()
	}
	testscript.Main(m, map[string]func(){"reconcile": main})
}

// TestScripts runs testdata/script: README there says what the commands are.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		Setup:              setup,
		RequireUniqueNames: true,
		UpdateScripts:      os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"address":    with((*world).address),
			"await":      with((*world).await),
			"apiserver":  with((*world).apiserver),
			"audit":      with((*world).audit),
			"cluster":    with((*world).cluster),
			"commit":     with((*world).commit),
			"daemon":     with((*world).daemon),
			"exits":      with((*world).exits),
			"git":        with((*world).git),
			"gitserver":  with((*world).gitserver),
			"hidden":     with((*world).hidden),
			"http":       with((*world).http),
			"jsonschema": with((*world).jsonschema),
			"kubectl":    with((*world).kubectl),
			"log":        with((*world).log),
			"push":       with((*world).push),
			"settled":    with((*world).settled),
			"within":     with((*world).within),
		},
	})
}

// patience is how long a script waits for what must come. It is only used up
// where a test fails.
const patience = time.Minute

// world is what a script has besides its folder.
type world struct {
	*testscript.TestScript
	env     *testscript.Env
	plane   *controlplane.Plane
	daemons map[string]*process
	printed bytes.Buffer  // by all commands that exits ran
	mark    int           // bytes of the audit log that do not count
	most    time.Duration // to wait; 0 is patience
}

type worldKey struct{}

// setup gives a script folders and a git configuration of its own.
func setup(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, ".home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	gitconfig := "[user]\nname = Script\nemail = script@school.example\n[init]\ndefaultBranch = main\n[http]\nreceivepack = true\n[commit]\ngpgsign = false\n"
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(gitconfig), 0o600); err != nil {
		return err
	}
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		return err
	}
	for key, value := range map[string]string{
		"HOME": home, "XDG_CACHE_HOME": filepath.Join(env.WorkDir, ".cache"), "EXAMPLES": examples,
		"SUSPENDED":           `jsonpath={range .items[*].status.conditions[?(@.type=="Suspended")]}{.status} {.reason} {.message}{"\n"}{end}`,
		"READY":               `jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.reason} {.message}{"\n"}{end}`,
		"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
		// The same files make the same commit.
		"GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
		"GORACE": "atexit_sleep_ms=0 " + env.Getenv("GORACE"), "KUBECONFIG": "",
	} {
		env.Setenv(key, value)
	}
	env.Values[worldKey{}] = &world{env: env, daemons: map[string]*process{}}
	return nil
}

// with makes a command of a method.
func with(do func(w *world, args []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("this command has no negation")
		}
		w := ts.Value(worldKey{}).(*world)
		w.TestScript = ts
		do(w, args)
	}
}

func (w *world) usage(ok bool, text string) {
	if !ok {
		w.Fatalf("usage: %s", text)
	}
}

// command is a program in the script's folder and environment.
func (w *world) command(args []string) *exec.Cmd {
	program := args[0]
	if program == "kubectl" {
		w.usage(w.plane != nil, "cluster, before kubectl")
		program = w.plane.Bin(program)
	} else if found, err := exec.LookPath(program); err == nil {
		program = found
	}
	cmd := exec.Command(program, args[1:]...)
	cmd.Dir = w.MkAbs(".")
	keys := map[string]bool{}
	for _, variable := range w.env.Vars {
		key, _, _ := strings.Cut(variable, "=")
		keys[key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		cmd.Env = append(cmd.Env, key+"="+w.Getenv(key))
	}
	return cmd
}

// until waits for something to be so.
func (w *world) until(what string, ok func() bool) {
	most := w.most
	if most == 0 {
		most = patience
	}
	for deadline := time.Now().Add(most); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("waited too long for %s", what)
		}
	}
}

func (w *world) pattern(text string) *regexp.Regexp {
	pattern, err := regexp.Compile("(?m)" + text)
	w.Check(err)
	return pattern
}

// exits runs a command that must end with one exit code.
func (w *world) exits(args []string) {
	w.usage(len(args) > 1, "exits CODE COMMAND...")
	want, err := strconv.Atoi(args[0])
	w.Check(err)
	code := 0
	var exit *exec.ExitError
	if err := w.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		w.Check(err)
	}
	w.printed.WriteString(w.ReadFile("stdout") + w.ReadFile("stderr"))
	if code != want {
		w.Fatalf("exit code %d, want %d", code, want)
	}
}

// await runs a command until what it prints matches.
func (w *world) await(args []string) {
	w.usage(len(args) > 1, "await PATTERN COMMAND...")
	pattern := w.pattern(args[0])
	var last []byte
	defer func() { w.Logf("[last answer]\n%s", last) }()
	w.until(strings.Join(args, " "), func() bool {
		last, _ = w.command(args[1:]).CombinedOutput()
		return pattern.Match(bytes.TrimRight(last, "\n")) // so that ^$ is nothing at all
	})
}

// settled waits until the whole site equals a commit, and works.
func (w *world) settled(args []string) {
	w.usage(len(args) == 1, "settled COMMIT")
	w.await([]string{"^" + regexp.QuoteMeta(args[0]) + " True$", "kubectl", "get", "sites.kingmaker.dev", "-o",
		`jsonpath={.items[*].status.commit.reached} {.items[*].status.conditions[?(@.type=="Ready")].status}{"\n"}`})
}

// within is settled where the time that it takes is what matters.
func (w *world) within(args []string) {
	w.usage(len(args) == 3 && args[1] == "settled", "within DURATION settled COMMIT")
	var err error
	w.most, err = time.ParseDuration(args[0])
	w.Check(err)
	defer func() { w.most = 0 }()
	w.settled(args[2:])
}

// Git.

func (w *world) git(args []string) { w.Check(w.Exec("git", args...)) }

func (w *world) commit(args []string) {
	w.usage(len(args) == 2, "commit VARIABLE DIR")
	at := func(args ...string) []string { return append([]string{"-C", args[0]}, args[1:]...) }
	w.git(at(args[1], "add", "-A"))
	w.git(at(args[1], "commit", "-q", "--allow-empty", "-m", args[0]))
	w.git(at(args[1], "rev-parse", "HEAD"))
	w.Setenv(args[0], strings.TrimSpace(w.ReadFile("stdout")))
}

func (w *world) push(args []string) {
	w.commit(args)
	w.git([]string{"-C", args[1], "push", "-q", "--force", "origin", "HEAD:main"})
}

// gitserver serves the repositories of a folder over HTTP to those who know a
// password.
func (w *world) gitserver(args []string) {
	w.usage(len(args) == 4, "gitserver VARIABLE DIR USER PASSWORD")
	where, err := exec.Command("git", "--exec-path").Output()
	w.Check(err)
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(where)), "git-http-backend"), Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + w.MkAbs(args[1]), "GIT_HTTP_EXPORT_ALL=1", "HOME=" + w.Getenv("HOME"), "REMOTE_USER=script"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != args[2] || password != args[3] {
			out.Header().Set("WWW-Authenticate", `Basic realm="site"`)
			// A server that repeats what it was sent must not put it into a log.
			http.Error(out, "who is "+user+" with "+password+" and "+r.Header.Get("Authorization")+"?", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(out, r)
	}))
	w.env.Defer(server.Close)
	w.Setenv(args[0], server.URL)
}

// The cluster.

// cluster starts a control plane for this script.
func (w *world) cluster(args []string) {
	w.usage(w.plane == nil && (len(args) == 0 || len(args) == 1 && args[0] == "controllers"), "cluster [controllers], once")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var progress bytes.Buffer
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Controllers: len(args) == 1, AuditLog: filepath.Join(w.Getenv("WORK"), ".audit"), Progress: &progress,
	})
	w.Logf("%s", &progress)
	w.Check(err)
	w.env.Defer(func() { plane.Stop() })
	w.plane = plane
	w.Setenv("KUBECONFIG", plane.Kubeconfig)
}

// apiserver ends the API server, or starts it again.
func (w *world) apiserver(args []string) {
	w.usage(w.plane != nil && len(args) == 1 && (args[0] == "stop" || args[0] == "start"), "apiserver stop|start")
	if args[0] == "stop" {
		w.Check(w.plane.StopAPIServer())
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.Check(w.plane.StartAPIServer(ctx))
}

func (w *world) kubectl(args []string) {
	cmd := w.command(append([]string{"kubectl"}, args...))
	w.Check(w.Exec(cmd.Path, args...))
}

// audit counts what reconcile has written since a mark.
func (w *world) audit(args []string) {
	w.usage(w.plane != nil && (slices.Equal(args, []string{"mark"}) || len(args) == 2 && args[0] == "writes"), "audit mark, or audit writes NUMBER")
	// A line is written when its request has been answered: after this one is
	// there, those of programs that have ended are too.
	last := fmt.Sprintf("/version?audit=%d", time.Now().UnixNano())
	w.Check(w.command([]string{"kubectl", "get", "--raw", last}).Run())
	var text []byte
	w.until("the audit log", func() bool {
		var err error
		text, err = os.ReadFile(w.plane.AuditLog)
		w.Check(err)
		return bytes.Contains(text, []byte(last))
	})
	if args[0] == "mark" {
		w.mark = len(text)
		return
	}
	want, err := strconv.Atoi(args[1])
	w.Check(err)
	var writes []string
	for line := range bytes.Lines(text[w.mark:]) {
		var event struct{ Verb, RequestURI, UserAgent string }
		w.Check(json.Unmarshal(line, &event))
		if strings.HasPrefix(event.UserAgent, "kingmaker-reconcile/") && !strings.Contains(event.RequestURI, "dryRun=All") &&
			!slices.Contains([]string{"get", "list", "watch"}, event.Verb) {
			writes = append(writes, event.Verb+" "+event.RequestURI)
		}
	}
	if len(writes) != want {
		w.Fatalf("%d writes, want %d:\n%s", len(writes), want, strings.Join(writes, "\n"))
	}
}

// Daemons.

// process is a running daemon.
type process struct {
	*exec.Cmd
	said  logtest.Buffer
	ended chan struct{}
}

func (w *world) daemon(args []string) {
	w.usage(len(args) > 1, "daemon start NAME FLAGS..., daemon stop|kill|log NAME, or daemon ended NAME CODE")
	deed, name := args[0], args[1]
	p := w.daemons[name]
	if deed == "start" {
		w.usage(p == nil, "daemon start, once for each NAME")
		p = &process{Cmd: w.command(append([]string{"reconcile"}, args[2:]...)), ended: make(chan struct{})}
		p.Stdout, p.Stderr = &p.said, &p.said
		p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		w.Check(p.Start())
		go func() {
			p.Wait()
			close(p.ended)
		}()
		w.daemons[name] = p
		log := w.Logf
		w.env.Defer(func() {
			p.Process.Kill()
			<-p.ended
			log("[daemon %s]\n%s", name, &p.said)
		})
		return
	}
	w.usage(p != nil, "daemon start, first")
	code := 0
	switch deed {
	case "log":
		fmt.Fprint(w.Stdout(), &p.said)
		return
	case "stop":
		w.Check(p.Process.Signal(syscall.SIGTERM))
	case "kill":
		w.Check(p.Process.Kill())
		code = -1
	case "ended":
		w.usage(len(args) == 3, "daemon ended NAME CODE")
		var err error
		code, err = strconv.Atoi(args[2])
		w.Check(err)
	default:
		w.usage(false, "daemon start|stop|kill|log|ended")
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		w.Fatalf("daemon %s does not end", name)
	}
	if got := p.ProcessState.ExitCode(); got != code {
		w.Fatalf("daemon %s: exit code %d, want %d", name, got, code)
	}
}

// log waits until a daemon has said something.
func (w *world) log(args []string) {
	w.usage(len(args) == 2 && w.daemons[args[0]] != nil, "log NAME PATTERN")
	p, pattern := w.daemons[args[0]], w.pattern(args[1])
	w.until("daemon "+args[0]+" to say "+args[1], func() bool { return pattern.MatchString(p.said.String()) })
}

// address puts into a variable where a daemon listens.
func (w *world) address(args []string) {
	w.usage(len(args) == 2, "address NAME VARIABLE")
	const line = `msg=listening address=(\S+)`
	w.log([]string{args[0], line})
	w.Setenv(args[1], w.pattern(line).FindStringSubmatch(w.daemons[args[0]].said.String())[1])
}

// hidden fails where one of the words shows in what was printed, by exits and by
// daemons, or in what a cluster shows to everybody.
func (w *world) hidden(args []string) {
	texts := map[string]string{"a command": w.printed.String()}
	for name, p := range w.daemons {
		texts["daemon "+name] = p.said.String()
	}
	if w.plane != nil {
		public, err := w.command([]string{"kubectl", "get", "sites,events,configmaps,namespaces", "-A", "-o", "yaml", "--show-managed-fields"}).CombinedOutput()
		w.Check(err)
		texts["the cluster"] = string(public)
	}
	for where, text := range texts {
		w.usage(text != "", "hidden WORDS..., after something was printed")
		for _, word := range args {
			for _, form := range []string{word, base64.StdEncoding.EncodeToString([]byte(word)), fmt.Sprintf("%x", word)} {
				if i := strings.Index(text, form); i >= 0 {
					w.Fatalf("%s shows %q:\n%s", where, word, text[max(0, i-200):min(len(text), i+200)])
				}
			}
		}
	}
}

// Other things.

func (w *world) http(args []string) {
	w.usage(len(args) == 3, "http METHOD URL SECRET")
	body := "{}"
	request, err := http.NewRequest(args[0], args[1], strings.NewReader(body))
	w.Check(err)
	mac := hmac.New(sha256.New, []byte(args[2]))
	io.WriteString(mac, body)
	request.Header.Set("X-Hub-Signature-256", fmt.Sprintf("sha256=%x", mac.Sum(nil)))
	answer, err := http.DefaultClient.Do(request)
	w.Check(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	w.Check(err)
	fmt.Fprintf(w.Stdout(), "%s\n%s", answer.Status, text)
}

func (w *world) jsonschema(args []string) {
	w.usage(len(args) == 1, "jsonschema FILE")
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema.Plan()))
	w.Check(err)
	compiler := jsonschema.NewCompiler()
	w.Check(compiler.AddResource("mem:plan.json", document))
	plan, err := compiler.Compile("mem:plan.json")
	w.Check(err)
	printed, err := jsonschema.UnmarshalJSON(strings.NewReader(w.ReadFile(args[0])))
	w.Check(err)
	w.Check(plan.Validate(printed))
}
