package keeper_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kingmaker-io/kingmaker/cmd/lab/controlplane"
	"github.com/kingmaker-io/kingmaker/cmd/lab/logtest"
	"github.com/kingmaker-io/kingmaker/cmd/portal/cluster"
	"github.com/kingmaker-io/kingmaker/cmd/portal/keeper"
	"github.com/kingmaker-io/kingmaker/cmd/portal/session"
	"github.com/kingmaker-io/kingmaker/cmd/portal/visit"
)

// objects are a site: two Nodes, a template, and a volume with homes.
const objects = `
apiVersion: kingmaker.dev/v1alpha1
kind: Desktop
metadata: {name: xfce}
spec:
  image: kingmaker.dev/desktop:1
  groups: [pupils]
  home: {volume: homes}
  environment: {LANG: de_DE.UTF-8, MONEY: "$(HOME)"}
  resources: {cpu: 1, memory: 3Gi}
---
apiVersion: kingmaker.dev/v1alpha1
kind: Site
metadata: {name: school}
spec: {admins: admins, network: {pods: 127.0.0.0/8}}
---
apiVersion: v1
kind: Node
metadata: {name: pc-1}
---
apiVersion: v1
kind: Node
metadata: {name: pc-2}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: kingmaker-homes}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  hostPath: {path: /homes}
  claimRef: {namespace: kingmaker-desktops, name: homes}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kingmaker.dev/volume-homes, operator: In, values: [ready]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: homes, namespace: kingmaker-desktops}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}, storageClassName: "", volumeName: kingmaker-homes}
`

// world is a real API server, on which the test is scheduler, kubelets and machines.
type world struct {
	*testing.T
	admin   kubernetes.Interface
	objects dynamic.Interface
	portal  *cluster.Cluster // with the rights of the portal's account, and no others
	log     *logtest.Buffer
	later   atomic.Int64 // by how much the keepers' clocks are ahead of ours
	leases  atomic.Int64 // renewed
}

func start(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plane.Stop() })
	kubectl := func(in string, args ...string) {
		cmd := exec.CommandContext(t.Context(), plane.Bin("kubectl"), args...)
		cmd.Env, cmd.Stdin = append(os.Environ(), "KUBECONFIG="+plane.Kubeconfig), strings.NewReader(in)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	base := "../../../manifests/base/"
	kubectl("", "apply", "-f", base+"namespace.yaml", "-f", base+"crd-machines.yaml", "-f", base+"crd-desktops.yaml", "-f", base+"crd-sites.yaml", "-f", base+"crd-volumes.yaml",
		"-f", "../../../manifests/directory/namespace.yaml")
	kubectl("", "apply", "-k", "../../../manifests/portal")
	kubectl("", "wait", "--for=condition=Established", "--timeout=30s", "crd/sessions.kingmaker.dev", "crd/desktops.kingmaker.dev", "crd/machines.kingmaker.dev", "crd/sites.kingmaker.dev")
	kubectl(objects, "apply", "-f", "-")
	config, err := clientcmd.BuildConfigFromFlags("", plane.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	as := rest.CopyConfig(config)
	as.QPS, as.Burst = 200, 400
	as.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:kingmaker-portal:portal",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kingmaker-portal", "system:authenticated"}}
	return &world{T: t, admin: kubernetes.NewForConfigOrDie(config), objects: dynamic.NewForConfigOrDie(config), log: &logtest.Buffer{},
		portal: &cluster.Cluster{Client: kubernetes.NewForConfigOrDie(as), Dynamic: dynamic.NewForConfigOrDie(as)}}
}

func (w *world) keep() {
	for i := range 2 { // as when a lease was lost and the former holder does not know
		k := &keeper.Keeper{Cluster: w.portal, Log: slog.New(slog.NewTextHandler(w.log, nil)).With("keeper", i),
			Now: func() time.Time { return time.Now().Add(time.Duration(w.later.Load())) }, Person: func(_ context.Context, user string) (session.Person, error) {
				if user != "anna" {
					return session.Person{}, errors.New("nobody")
				}
				return session.Person{Name: "anna", FullName: "Anna: Arnold", UID: 12001, GID: 5000, Groups: []session.Membership{{Name: "pupils", GID: 5000}, {Name: "band", GID: 5001}}}, nil
			}}
		renewer := &keeper.Renewer{Cluster: w.portal, Log: k.Log}
		ctx, cancel := context.WithCancel(w.Context())
		var all sync.WaitGroup
		for _, run := range []func(context.Context) error{k.Run, renewer.Run} {
			all.Go(func() {
				if err := run(ctx); err != nil && ctx.Err() == nil {
					w.Errorf("keeper %d: %v", i, err)
				}
			})
		}
		w.Cleanup(func() { cancel(); all.Wait() })
	}
}

func (w *world) eventually(what string, is func() bool) {
	w.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			d, _, _ := w.portal.Look(w.Context(), "anna")
			w.Fatalf("%s: not within 30 s; %+v %+v\n%s", what, d.Spec, d.Status, w.log.String())
		}
	}
}

// phase waits for one, of the newest generation.
func (w *world) phase(want string) session.Status {
	w.Helper()
	var d cluster.Desk
	w.eventually("phase "+want, func() bool {
		d, _, _ = w.portal.Look(w.Context(), "anna")
		return d.Status.Phase == want && d.Status.Generation == d.Spec.Generation
	})
	return d.Status
}

func (w *world) pod(name string) *corev1.Pod {
	pod, err := w.admin.CoreV1().Pods(session.Namespace).Get(w.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.Fatal(err)
	}
	return pod
}

// made waits for a Pod, and checks that none other exists.
func (w *world) made(name string) *corev1.Pod {
	w.Helper()
	var pod *corev1.Pod
	w.eventually(name+" is made", func() bool { pod = w.pod(name); return pod != nil })
	list, err := w.admin.CoreV1().Pods(session.Namespace).List(w.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		w.Errorf("%d Pods, %v", len(list.Items), err)
	}
	return pod
}

// bind is the scheduler.
func (w *world) bind(name, node string) {
	w.Helper()
	if err := w.admin.CoreV1().Pods(session.Namespace).Bind(w.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

// report is a kubelet.
func (w *world) report(name string, change func(*corev1.PodStatus)) {
	w.Helper()
	w.eventually("report of "+name, func() bool {
		pod := w.pod(name)
		if pod == nil {
			return false
		}
		change(&pod.Status)
		_, err := w.admin.CoreV1().Pods(session.Namespace).UpdateStatus(w.Context(), pod, metav1.UpdateOptions{})
		if err != nil && !apierrors.IsConflict(err) {
			w.Fatal(err)
		}
		return err == nil
	})
}

func running(ip string) func(*corev1.PodStatus) {
	return func(s *corev1.PodStatus) {
		s.Phase, s.PodIP, s.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
		s.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		s.ContainerStatuses = []corev1.ContainerStatus{{Name: "desktop", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}}}
	}
}

func over(s *corev1.PodStatus) {
	s.Phase = corev1.PodSucceeded
	s.Conditions = nil
	s.ContainerStatuses = []corev1.ContainerStatus{{Name: "desktop", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}}
}

// desktop is what runs in the Pod: it has its Secret, and nothing else.
func (w *world) desktop(pod, ip string) {
	w.Helper()
	secret, err := w.admin.CoreV1().Secrets(session.Namespace).Get(w.Context(), pod, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	if got := string(secret.Data["passwd"]); got != "anna:x:12001:5000:Anna  Arnold:/home/anna:/bin/bash\n" {
		w.Errorf("passwd is %q", got)
	}
	if got := string(secret.Data["group"]); got != "pupils:x:5000:anna\nband:x:5001:anna\n" {
		w.Errorf("group is %q", got)
	}
	pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	if err != nil {
		w.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(rw http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(rw).Encode(map[string]any{"ready": true, "stage": "painted", "idleSeconds": 120, "clients": 1, "clock": 5_000_000})
	})
	mux.HandleFunc("POST /lease", func(_ http.ResponseWriter, r *http.Request) {
		var given struct{ Until int64 }
		if err := json.NewDecoder(r.Body).Decode(&given); err != nil || given.Until != 5_000_000+session.LeaseFor.Milliseconds() {
			w.Errorf("a lease until %d, %v", given.Until, err)
		}
		w.leases.Add(1)
	})
	mux.HandleFunc("GET /vnc", func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}})
		if err == nil {
			_ = c.Write(r.Context(), websocket.MessageBinary, []byte("RFB 003.008\n"))
			_ = c.Close(websocket.StatusNormalClosure, "")
		}
	})
	listener, err := tls.Listen("tcp", ip+":8443", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		w.Skip("port 8443 is taken: ", err)
	}
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+string(secret.Data["token"]) || r.Header.Get("Cookie") != "" {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(rw, r)
	})}
	go func() { _ = server.Serve(listener) }()
	w.Cleanup(func() { server.Close() })
}

// stays checks that for a while nothing but this one Pod is there.
func (w *world) stays(name string) {
	w.Helper()
	for range 30 {
		list, err := w.admin.CoreV1().Pods(session.Namespace).List(w.Context(), metav1.ListOptions{})
		if err != nil {
			w.Fatal(err)
		}
		if len(list.Items) != 1 || list.Items[0].Name != name {
			w.Fatalf("%s is not alone, or gone: %d Pods", name, len(list.Items))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestLife is the life of a desktop, on a real API server, with two keepers at once and
// with no rights but those of manifests/portal.
func TestLife(t *testing.T) {
	w := start(t)
	ctx := t.Context()
	w.keep()

	if _, ok, err := w.portal.Look(ctx, "anna"); ok || err != nil {
		t.Fatal(ok, err)
	}
	for range 3 { // three browsers
		if err := w.portal.Start(ctx, "anna", "xfce", session.Size{Width: 1366, Height: 700}); err != nil {
			t.Fatal(err)
		}
	}
	watch := w.portal.Watch(ctx, "anna")
	checkPod(t, w.made("desk-anna-1"))
	w.bind("desk-anna-1", "pc-1")
	w.report("desk-anna-1", running("127.0.0.2"))
	w.desktop("desk-anna-1", "127.0.0.2")
	if s := w.phase(session.Ready); s.PodIP != "127.0.0.2" || s.Node != "pc-1" || s.Stage != session.Painted {
		t.Errorf("%+v", s)
	}
	w.eventually("the desktop is heard", func() bool {
		d, _, _ := w.portal.Look(ctx, "anna")
		ago := time.Since(d.Status.LastInput)
		return ago > time.Minute && ago < 4*time.Minute
	})
	w.eventually("it has a lease", func() bool { return w.leases.Load() > 0 })
	desktop, err := w.portal.Reach(ctx, "anna")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := desktop.Screen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, b, err := conn.Read(ctx); err != nil || string(b) != "RFB 003.008\n" {
		t.Errorf("%s, %v", b, err)
	}
	conn.CloseNow()
	if _, err := w.portal.Reach(ctx, "ben"); !errors.Is(err, cluster.ErrAway) {
		t.Errorf("another user's: %v", err)
	}
	outside := &cluster.Cluster{Client: w.portal.Client, Dynamic: w.portal.Dynamic, Pods: netip.MustParsePrefix("10.244.0.0/16")}
	if _, err := outside.Reach(ctx, "anna"); err == nil || !strings.Contains(err.Error(), "no address of a Pod") {
		t.Errorf("an address of no Pod: %v", err)
	}
	select {
	case d := <-watch:
		if d.Spec.User != "anna" {
			t.Error(d)
		}
	case <-time.After(5 * time.Second):
		t.Error("nothing is told")
	}

	// The next one waits until the kubelet says that this one is over.
	if err := w.portal.Restart(ctx, "anna"); err != nil {
		t.Fatal(err)
	}
	if s := w.phase(session.Fenced); s.Reason != session.FormerAlive || s.Pod != "desk-anna-1" || s.Node != "pc-1" {
		t.Errorf("%+v", s)
	}
	w.stays("desk-anna-1")
	w.report("desk-anna-1", over)
	w.made("desk-anna-2")
	if _, err := w.admin.CoreV1().Secrets(session.Namespace).Get(ctx, "desk-anna-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Secret of what is over: %v", err)
	}

	// Its machine dies: it is followed when its lease has run out, by everybody's clock.
	w.bind("desk-anna-2", "pc-2")
	w.report("desk-anna-2", running("127.0.0.3"))
	w.phase(session.Ready)
	grace := int64(0)
	// What Kubernetes does with a Pod whose Node is gone: it knows nothing of the machine.
	w.report("desk-anna-2", func(s *corev1.PodStatus) {
		s.Phase = corev1.PodFailed
		s.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC"}}
	})
	if err := w.admin.CoreV1().Pods(session.Namespace).Delete(ctx, "desk-anna-2", metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		t.Fatal(err)
	}
	w.phase(session.Fenced)
	w.later.Store(int64(session.LeaseFor - 15*time.Second))
	w.stays("desk-anna-2")
	w.later.Store(int64(session.LeaseFor + 10*time.Second))
	w.made("desk-anna-3")
	if _, err := w.admin.CoreV1().Secrets(session.Namespace).Get(ctx, "desk-anna-2", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Secret of what is over: %v", err)
	}

	// What keeps it from starting is said.
	w.bind("desk-anna-3", "pc-1")
	w.report("desk-anna-3", func(s *corev1.PodStatus) {
		s.ContainerStatuses = []corev1.ContainerStatus{{Name: "desktop", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImageNeverPull", Message: "not here"}}}}
	})
	w.eventually("the image is missed", func() bool {
		d, _, _ := w.portal.Look(ctx, "anna")
		return d.Status.Reason == session.NoImage && d.Status.Message == "ErrImageNeverPull: not here" && d.Status.Stage == session.Placed
	})
	if err := w.portal.Stop(ctx, "anna"); err != nil {
		t.Fatal(err)
	}
	w.eventually("it is told to end", func() bool { return w.pod("desk-anna-3").DeletionTimestamp != nil })
	w.report("desk-anna-3", over)
	w.phase(session.Stopped)
	w.eventually("nothing is left", func() bool { return w.pod("desk-anna-3") == nil })

	// Who the directory does not know gets no desktop, and is told.
	if err := w.portal.Start(ctx, "Mallory.X", "xfce", session.Size{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("nobody's desktop", func() bool {
		d, ok, err := w.portal.Look(ctx, "Mallory.X")
		return err == nil && ok && d.Status.Reason == session.NoPerson
	})

	// The image of the template is brought to every machine, and let go when it is another.
	brought := func() (images []string) {
		list, err := w.admin.AppsV1().DaemonSets(session.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list.Items {
			images = append(images, d.Spec.Template.Spec.Containers[0].Image)
		}
		return images
	}
	w.eventually("the image is brought", func() bool { return slices.Equal(brought(), []string{"kingmaker.dev/desktop:1"}) })
	template := w.objects.Resource(session.TemplateResource())
	if _, err := template.Patch(ctx, "xfce", types.MergePatchType, []byte(`{"spec":{"image":"registry.example/xfce:2"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.later.Add(int64(time.Minute))
	w.eventually("the other image is brought", func() bool { return slices.Equal(brought(), []string{"registry.example/xfce:2"}) })

	// A visit, with the portal's rights.
	store := &visit.Store{Client: w.portal.Client.CoreV1().Secrets(cluster.Namespace)}
	value, err := store.Begin(ctx, "anna", false)
	if err == nil {
		_, err = store.Get(ctx, value)
	}
	if err = errors.Join(err, store.Sweep(ctx), store.EndOthers(ctx, "anna", ""), store.End(ctx, value)); err != nil {
		t.Error(err)
	}
	// And not with more.
	for what, err := range map[string]error{
		"Secrets of other namespaces": get(w.portal.Client.CoreV1().Secrets("kingmaker-system").List(ctx, metav1.ListOptions{})),
		"a list of desktops' Secrets": get(w.portal.Client.CoreV1().Secrets(session.Namespace).List(ctx, metav1.ListOptions{})),
		"Pods elsewhere":              get(w.portal.Client.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{})),
		"a Session's end":             w.portal.Dynamic.Resource(session.Resource()).Namespace(session.Namespace).Delete(ctx, "anna", metav1.DeleteOptions{}),
		"a template":                  get(w.portal.Dynamic.Resource(session.TemplateResource()).Create(ctx, &unstructured.Unstructured{Object: map[string]any{"apiVersion": session.Version, "kind": "Desktop", "metadata": map[string]any{"name": "x"}, "spec": map[string]any{"image": "x:1"}}}, metav1.CreateOptions{})),
		"another account":             get(w.portal.Client.CoreV1().Secrets("kingmaker-directory").Get(ctx, "directory-daemon", metav1.GetOptions{})),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, part := range []string{"PRIVATE KEY", value} {
		if strings.Contains(w.log.String(), part) {
			t.Errorf("the log has %.20q", part)
		}
	}
}

func get[T any](_ T, err error) error { return err }

// checkPod holds what the API server made of the Pod against what is promised of it.
func checkPod(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	s, c := pod.Spec, pod.Spec.Containers[0]
	for what, ok := range map[string]bool{
		"uid and gid":        *s.SecurityContext.RunAsUser == 12001 && *s.SecurityContext.RunAsGroup == 5000 && slices.Equal(s.SecurityContext.SupplementalGroups, []int64{5001}) && s.SecurityContext.FSGroup == nil,
		"no token":           !*s.AutomountServiceAccountToken && !*s.EnableServiceLinks,
		"no capability":      slices.Equal(c.SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}) && !*c.SecurityContext.AllowPrivilegeEscalation && *c.SecurityContext.ReadOnlyRootFilesystem,
		"the volume's mark":  s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchExpressions[0].Key == "kingmaker.dev/volume-homes",
		"memory":             c.Resources.Limits.Memory().String() == "3Gi" && c.Resources.Requests.Cpu().String() == "1",
		"a dollar is one":    slices.Contains(c.Env, corev1.EnvVar{Name: "MONEY", Value: "$$(HOME)"}),
		"the browser's size": slices.Contains(c.Env, corev1.EnvVar{Name: "SCREEN", Value: "1366x700"}),
		"the fence":          slices.Contains(pod.Finalizers, session.Finalizer),
		"never again":        s.RestartPolicy == corev1.RestartPolicyNever,
		"its owner":          len(pod.OwnerReferences) == 1 && pod.OwnerReferences[0].Kind == "Session",
	} {
		if !ok {
			t.Errorf("%s: it is not so", what)
		}
	}
	at := map[string]string{}
	for _, m := range c.VolumeMounts {
		at[m.MountPath] = m.SubPath
	}
	for _, path := range []string{"/home/anna", "/home/anna/.cache", "/tmp", "/run/desktop", "/dev/shm", "/run/kingmaker/session", "/var/lib/extrausers"} {
		if _, ok := at[path]; !ok {
			t.Errorf("nothing is mounted at %s", path)
		}
	}
	if at["/home/anna"] != "anna" {
		t.Errorf("the home is folder %q", at["/home/anna"])
	}
	tolerated := 0
	for _, one := range s.Tolerations {
		if one.TolerationSeconds != nil && *one.TolerationSeconds <= 60 {
			tolerated++
		}
	}
	if tolerated != 2 {
		t.Errorf("%d tolerations of a minute at most: %v", tolerated, s.Tolerations)
	}
}
