package gluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// said answers with what a real gluster 10.3 printed: see testdata/xml. The files
// beginning with down are of the moment in which one brick of three was killed.
func said(t testing.TB, name string) CLI {
	return func(context.Context, ...string) ([]byte, error) {
		text, err := os.ReadFile(filepath.Join("testdata/xml", name+".xml"))
		if err != nil {
			t.Fatal(err)
		}
		return text, nil
	}
}

func TestCLI(t *testing.T) {
	ctx := t.Context()
	show := func(v any, err error) string {
		if err != nil {
			return "error: " + err.Error()
		}
		return fmt.Sprintf("%+v", v)
	}
	peers, err := said(t, "pool").Pool(ctx)
	volumes, verr := said(t, "info").Volumes(ctx)
	processes, perr := said(t, "status").Processes(ctx, "homes")
	fewer, ferr := said(t, "down-status").Processes(ctx, "homes")
	heals, herr := said(t, "heal").Heals(ctx, "homes")
	unknown, uerr := said(t, "down-heal").Heals(ctx, "homes")
	_, absent := said(t, "absent").Volumes(ctx)
	for _, c := range []struct{ name, got, want string }{
		{"pool", show(peers, err), "[{UUID:ebc477e6-0877-46df-9251-4700216bc1d1 Addresses:[10.199.0.2] Self:false Connected:true Member:true State:Peer in Cluster} " +
			"{UUID:e8e1d91f-8414-42a6-ae8b-efaba26fdcfa Addresses:[10.199.0.3] Self:false Connected:true Member:true State:Peer in Cluster} " +
			"{UUID:bc579873-8d06-46c5-b20d-727bb58ed39c Addresses:[] Self:true Connected:true Member:true State:}]"},
		{"volumes", show(volumes, verr), "[{ID:e940abe2-889d-4bd4-9239-1d2da12a41d3 Name:homes Started:true Replicas:3 Sets:1 Arbiters:0 " +
			"Bricks:[10.199.0.1:/srv/data/homes 10.199.0.2:/srv/data/homes 10.199.0.3:/srv/data/homes] " +
			"Options:map[cluster.granular-entry-heal:on network.ping-timeout:10 nfs.disable:on performance.client-io-threads:off storage.fips-mode-rchecksum:on transport.address-family:inet]}]"},
		{"processes", show(states(processes), perr), "brick up, brick up, brick up, heal up, heal up, heal up"},
		{"a dead brick", show(states(fewer), ferr), "brick up, brick up, brick down, heal up, heal up, heal up"},
		{"heals", show(heals, herr), "[{Brick:10.199.0.1:/srv/data/homes Known:true Pending:0 SplitBrain:0} {Brick:10.199.0.2:/srv/data/homes Known:true Pending:0 SplitBrain:0} {Brick:10.199.0.3:/srv/data/homes Known:true Pending:0 SplitBrain:0}]"},
		{"heals that are not known", show(unknown, uerr), "[{Brick:10.199.0.1:/srv/data/homes Known:true Pending:0 SplitBrain:0} {Brick:10.199.0.2:/srv/data/homes Known:true Pending:0 SplitBrain:0} {Brick:10.199.0.3:/srv/data/homes Known:false Pending:0 SplitBrain:0}]"},
		{"a refusal", show(nil, absent), "error: gluster volume info: Volume does not exist"},
	} {
		if c.got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, c.got, c.want)
		}
	}
	if r := (*Refusal)(nil); !errors.As(absent, &r) {
		t.Errorf("%v is no refusal", absent)
	}
}

func states(processes []Process) string {
	var all []string
	for _, p := range processes {
		kind, state := "heal", "down"
		if p.Path != "" {
			kind = "brick"
		}
		if p.Online {
			state = "up"
		}
		all = append(all, kind+" "+state)
	}
	return strings.Join(all, ", ")
}

// TestCLIFails: what is no answer is never taken for an empty one.
func TestCLIFails(t *testing.T) {
	broken := errors.New("exit status 1: Connection failed. Please check if gluster daemon is operational.")
	for _, c := range []struct {
		out  string
		err  error
		want string
	}{
		{"", broken, "gluster volume info: " + broken.Error()},
		{"Error : Request timed out\n", nil, `gluster volume info: no answer: "Error : Request timed out\n"`},
		{"<cliOutput><opRet>0</opRet>", nil, "gluster volume info: read the answer: XML syntax error on line 1: unexpected EOF"},
		{"<cliOutput></cliOutput>", nil, `gluster volume info: no answer: "<cliOutput></cliOutput>"`},
		{"<cliOutput><opRet>-1</opRet><opErrno>30806</opErrno><opErrstr> Another transaction is in progress for homes. </opErrstr></cliOutput>", broken, "gluster volume info: Another transaction is in progress for homes."},
		{"<cliOutput><opRet>0</opRet><opErrstr/></cliOutput>", broken, "gluster volume info: " + broken.Error()},
		{"<cliOutput><opRet>0</opRet><volInfo><volumes><volume><name>v</name><bricks><brick><name>nowhere</name></brick></bricks></volume></volumes></volInfo></cliOutput>", nil, `gluster volume info: brick "nowhere" of volume v has no path`},
	} {
		cli := CLI(func(context.Context, ...string) ([]byte, error) { return []byte(c.out), c.err })
		if volumes, err := cli.Volumes(t.Context()); err == nil || err.Error() != c.want {
			t.Errorf("%q: %v %v, want %s", c.out, volumes, err, c.want)
		}
	}
}

// FuzzCLI: whatever gluster prints, nothing panics, and a count that is not there is
// not nought.
func FuzzCLI(f *testing.F) {
	files, err := filepath.Glob("testdata/xml/*.xml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cli := CLI(func(context.Context, ...string) ([]byte, error) { return text, nil })
		_, _ = cli.Pool(t.Context())
		_, _ = cli.Volumes(t.Context())
		_, _ = cli.Processes(t.Context(), "v")
		heals, _ := cli.Heals(t.Context(), "v")
		for _, h := range heals {
			if h.Known && !strings.Contains(string(text), "Connected") {
				t.Errorf("%+v of %q", h, text)
			}
		}
	})
}
