package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/kingmaker-io/kingmaker/reconciler/gluster"
)

// TestStatusOfBrick is what people read of a brick and of volumes.
func TestStatusOfBrick(t *testing.T) {
	for want, brick := range map[string]gluster.MachineBrick{
		"7.2 of 8.0 GiB free, glusterd answers":                               {Size: 8 << 30, Free: 7373 << 20, Glusterd: "u1"},
		"7.2 of 8.0 GiB free, glusterd does not answer":                       {Size: 8 << 30, Free: 7373 << 20},
		"nothing is mounted at /srv/brick":                                    {Unfit: "nothing is mounted at /srv/brick"},
		"1.0 of 8.0 GiB free; its file system is ext4, and a brick wants xfs": {Size: 8 << 30, Free: 1 << 30, Unfit: "its file system is ext4, and a brick wants xfs"},
		"1.0 of 8.0 GiB free; it is read-only, glusterd answers":              {Size: 8 << 30, Free: 1 << 30, Unfit: "it is read-only", Glusterd: "u1"},
	} {
		if got := brickWords(&brick); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	r := &report{Brick: &gluster.MachineBrick{Unfit: "nothing is mounted at /srv/brick", Mounts: []gluster.Mount{
		{Volume: "homes", Ready: true}, {Volume: "shared", Message: "its folders are not made yet"}}}}
	var out bytes.Buffer
	if err := r.write(&out, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"volume homes", "volume shared"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("no %s in\n%s", line, &out)
		}
	}
	if !strings.Contains(out.String(), "not ready: its folders are not made yet") {
		t.Errorf("no reason in\n%s", &out)
	}
}
