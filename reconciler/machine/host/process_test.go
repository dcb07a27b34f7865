package host_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine/host"
)

func TestProcess(t *testing.T) {
	h := &host.Host{Root: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	rest := strings.Repeat(" 1", 18) + " 777 5 6\n"
	for text, want := range map[string]host.Process{
		"7 (glusterd) S" + rest:     {Name: "glusterd", State: "S", Began: 777},
		"7 (a) Z 1 (b c)) R" + rest: {Name: "a) Z 1 (b c)", State: "R", Began: 777},
		"7 (cut) S 1 1\n":           {},
		"7 nothing S" + rest:        {},
		"":                          {},
	} {
		if err := h.Write("/proc/7/stat", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := h.Process("7")
		if got != want || (err == nil) != (want.Name != "") {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
	if _, err := h.Process("8"); err == nil {
		t.Error("there is no such process")
	}
}
