package render

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/source/tree"
)

// TestMain is the main function of children too, as cmd's is.
func TestMain(m *testing.M) {
	switch os.Args[0] {
	case ChildName:
		os.Exit(Child(os.Stdin, os.Stdout))
	case probeName:
		os.Exit(probe())
	}
	os.Exit(m.Run())
}

// site makes a tree of files in txtar form: each under a line "-- name --". A
// name followed by -> and a target is a symlink.
func site(t testing.TB, files string) *tree.Dir {
	t.Helper()
	root := newDir()
	for _, f := range strings.Split("\n"+strings.TrimSuffix(files, "\n"), "\n-- ")[1:] {
		name, content, _ := strings.Cut(f+"\n", " --\n")
		if name, target, link := strings.Cut(name, " -> "); link {
			put(root, name, &tree.File{Kind: tree.Symlink, Hash: tree.HashBlob([]byte(target))})
			continue
		}
		put(root, name, regular([]byte(content)))
	}
	return root.Seal()
}

func newDir() *tree.Dir {
	return &tree.Dir{Dirs: map[string]*tree.Dir{}, Files: map[string]*tree.File{}}
}

func regular(content []byte) *tree.File {
	return &tree.File{Hash: tree.HashBlob(content), Size: int64(len(content)), Read: func() ([]byte, error) { return content, nil }}
}

// put adds a file to a tree that is not sealed yet.
func put(d *tree.Dir, at string, f *tree.File) {
	folder, name := path.Split(at)
	for step := range strings.SplitSeq(strings.Trim(folder, "/"), "/") {
		if step == "" {
			continue
		}
		if d.Dirs[step] == nil {
			d.Dirs[step] = newDir()
		}
		d = d.Dirs[step]
	}
	d.Files[name] = f
}

// object is a small Kubernetes object.
func object(i int) string {
	switch i % 3 {
	case 0:
		return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings-%d\n  namespace: wiki\n  labels:\n    app: wiki-%d\ndata:\n  colour: blue\n  motd: |\n    Welcome.\n    Please log out.\n", i, i)
	case 1:
		return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: web-%d\n  namespace: wiki\nspec:\n  selector:\n    app: wiki-%d\n  ports:\n  - port: 80\n    targetPort: 8080\n    name: http\n", i, i)
	}
	return fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web-%d\n  namespace: wiki\nspec:\n  replicas: 2\n  selector:\n    matchLabels:\n      app: wiki-%d\n  template:\n    metadata:\n      labels:\n        app: wiki-%d\n    spec:\n      containers:\n      - name: web\n        image: registry.example/wiki:1.4\n        ports:\n        - containerPort: 8080\n        env:\n        - name: MODE\n          value: \"1\"\n        resources:\n          limits:\n            cpu: 100m\n            memory: 64Mi\n", i, i, i)
}

// manyObjects is a site of units under services with so many objects each, ten
// in a file, and a kustomization of the given text in each unit, where there is
// one. LIST stands for the files.
func manyObjects(t testing.TB, units, objects int, kustomization string) *tree.Dir {
	t.Helper()
	root := newDir()
	for u := range units {
		var list strings.Builder
		for file := 0; file*10 < objects; file++ {
			var text strings.Builder
			for i := file * 10; i < min(file*10+10, objects); i++ {
				text.WriteString("---\n" + object(u*objects+i))
			}
			put(root, fmt.Sprintf("services/unit-%02d/file-%04d.yaml", u, file), regular([]byte(text.String())))
			fmt.Fprintf(&list, "- file-%04d.yaml\n", file)
		}
		if kustomization != "" {
			text := strings.ReplaceAll(kustomization, "LIST\n", list.String())
			put(root, fmt.Sprintf("services/unit-%02d/kustomization.yaml", u), regular([]byte(text)))
		}
	}
	return root.Seal()
}

const probeName = "kingmaker-probe"

// probe is a child that tries what a render must not, and prints what it could.
func probe() int {
	if err := enclose(limits{Memory: 1 << 30}); err != nil {
		fmt.Println(err)
		return 1
	}
	if f, err := os.Open("/etc/passwd"); err == nil {
		fmt.Println("opened", f.Name())
	}
	if f, err := os.Create("/tmp/kingmaker-probe"); err == nil {
		fmt.Println("made", f.Name())
	}
	if err := exec.Command("/bin/true").Run(); err == nil {
		fmt.Println("ran /bin/true")
	}
	if c, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		fmt.Println("listens on", c.Addr())
	}
	if _, err := net.Dial("udp", "127.0.0.1:9"); err == nil {
		fmt.Println("dialled")
	}
	return 0
}
