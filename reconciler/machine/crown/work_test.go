package crown

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// TestOnOneMachine: data on one disk pin a Pod to it; a volume of ours pins nobody.
func TestOnOneMachine(t *testing.T) {
	on := func(claim string, labels map[string]string, spec corev1.PersistentVolumeSpec) corev1.PersistentVolume {
		if claim != "" {
			spec.ClaimRef = &corev1.ObjectReference{Namespace: "wiki", Name: claim}
		}
		return corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec}
	}
	path := corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv"}}
	affine := &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{}}
	got := onOneMachine([]corev1.PersistentVolume{
		on("path", nil, corev1.PersistentVolumeSpec{PersistentVolumeSource: path}),
		on("local", map[string]string{"kingmaker.dev/other": "x"}, corev1.PersistentVolumeSpec{NodeAffinity: affine}),
		on("network", nil, corev1.PersistentVolumeSpec{}),
		on("ours", map[string]string{"kingmaker.dev/volume": "wiki"}, corev1.PersistentVolumeSpec{PersistentVolumeSource: path, NodeAffinity: affine}),
		on("", nil, corev1.PersistentVolumeSpec{PersistentVolumeSource: path}),
	})
	if want := map[string]bool{"wiki/path": true, "wiki/local": true}; !maps.Equal(got, want) {
		t.Errorf("have %v, want %v", got, want)
	}
}

// TestCopies is what machines weigh for their copies of volumes.
func TestCopies(t *testing.T) {
	for _, c := range []struct {
		name, volumes string
		want          map[string]float64
	}{
		{"none", ``, map[string]float64{}},
		{"all copies run", `{"status":{"bricks":[{"machine":"a","online":true},{"machine":"b","online":true},{"machine":"c","online":true}]}}`,
			map[string]float64{"a": .5, "b": .5, "c": .5}},
		{"one of three is away", `{"status":{"bricks":[{"machine":"a","online":true},{"machine":"b","online":true},{"machine":"c","online":false}]}}`,
			map[string]float64{"a": 10, "b": 10, "c": .5}},
		{"one of five is away", `{"status":{"bricks":[{"machine":"a","online":true},{"machine":"b","online":true},{"machine":"c","online":true},{"machine":"d","online":true},{"machine":"e"}]}}`,
			map[string]float64{"a": .5, "b": .5, "c": .5, "d": .5, "e": .5}},
		{"half is no majority", `{"status":{"bricks":[{"machine":"a","online":true},{"machine":"b","online":true}]}}`, map[string]float64{"a": 10, "b": 10}},
		{"the only copy", `{"status":{"bricks":[{"machine":"a","online":true}]}}`, map[string]float64{"a": 10}},
		{"not made yet", `{"spec":{"bricks":[{"machine":"a","address":"10.0.0.1"}]}}`, map[string]float64{"a": .5}},
		{"one is to move", `{"spec":{"bricks":[{"machine":"a"},{"machine":"b"},{"machine":"d"}]},"status":{"bricks":[{"machine":"a","online":true},{"machine":"b","online":true},{"machine":"c"}]}}`,
			map[string]float64{"a": 10, "b": 10, "c": .5, "d": .5}},
		{"one is nobody's", `{"status":{"bricks":[{"machine":"a","online":true},{"online":true},{"machine":"c","online":true}]}}`, map[string]float64{"a": .5, "c": .5}},
		{"two volumes", `{"status":{"bricks":[{"machine":"a","online":true}]}},{"spec":{"bricks":[{"machine":"a"}]}}`, map[string]float64{"a": 10.5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := weigh(t, http.StatusOK, `{"apiVersion":"kingmaker.dev/v1alpha1","kind":"VolumeList","items":[`+c.volumes+`]}`)
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("have %v %v, want %v", got, err, c.want)
			}
		})
	}
	if got, err := weigh(t, http.StatusNotFound, "404 page not found\n"); err != nil || len(got) > 0 {
		t.Errorf("the kind is not served: %v %v", got, err)
	}
	if _, err := weigh(t, http.StatusForbidden, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`); err == nil {
		t.Error("volumes that cannot be read weigh nothing")
	}
}

// weigh asks a server that gives one answer.
func weigh(t *testing.T, code int, body string) (map[string]float64, error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/apis/kingmaker.dev/v1alpha1/volumes" {
			t.Errorf("asked for %s", r.URL)
		}
		if body[0] == '{' {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(code)
		io.WriteString(w, body)
	}))
	defer server.Close()
	k, err := New(Options{Config: &rest.Config{Host: server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	return k.copies(t.Context())
}
