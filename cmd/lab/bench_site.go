package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// benchSite is a site of a given size, as people write them: a file an object,
// and a kustomization in each folder that gives the namespace and a label.
type benchSite struct {
	objects int // besides a namespace a unit
	perUnit int // objects
}

// The four kinds, in turns. NAMESPACE and PARTOF are lines that the
// kustomization writes: kubectl's manifest has them, the site repo has not.
var benchKinds = []struct{ kind, text string }{
	{"deployment", `apiVersion: apps/v1
kind: Deployment
metadata:
  name: NAME
NAMESPACE  labels:
    app.kubernetes.io/name: NAME
PARTOF  annotations:
    school.example/about: what the pupils of one class use, and nobody else
spec:
  replicas: 2
  revisionHistoryLimit: 3
  selector:
    matchLabels: {app.kubernetes.io/name: NAME}
  template:
    metadata:
      labels: {app.kubernetes.io/name: NAME}
    spec:
      serviceAccountName: NAME
      automountServiceAccountToken: false
      securityContext:
        runAsNonRoot: true
        runAsUser: 33
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: web
          image: registry.school.example/services/web:2026.1
          args: [--listen=:8080, --title=NAME]
          envFrom:
            - configMapRef: {name: NAME}
          env:
            - {name: LOG_LEVEL, value: info}
          ports:
            - {name: http, containerPort: 8080}
          readinessProbe:
            httpGet: {path: /healthz, port: http}
          resources:
            requests: {cpu: 50m, memory: 64Mi}
            limits: {memory: 128Mi}
          securityContext:
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: settings, mountPath: /etc/web}
      volumes:
        - name: settings
          configMap: {name: NAME}
`},
	{"service", `apiVersion: v1
kind: Service
metadata:
  name: NAME
NAMESPACE  labels:
    app.kubernetes.io/name: NAME
PARTOFspec:
  selector: {app.kubernetes.io/name: NAME}
  ports:
    - {name: http, port: 80, targetPort: http}
`},
	{"serviceaccount", `apiVersion: v1
kind: ServiceAccount
metadata:
  name: NAME
NAMESPACE  labels:
    app.kubernetes.io/name: NAME
PARTOFautomountServiceAccountToken: false
`},
	{"configmap", `apiVersion: v1
kind: ConfigMap
metadata:
  name: NAME
NAMESPACE  labels:
    app.kubernetes.io/name: NAME
PARTOFdata:
  revision: r0
  web.yaml: |
    title: NAME
    motd: Welcome. Please log out when you leave.
    cache: {size: 64Mi, ttl: 10m}
    backends:
      - http://NAME.UNIT.svc:80
  robots.txt: |
    User-agent: *
    Disallow: /
`},
}

// changedConfigMap is the object that one-object commits change.
const changedConfigMap = "services/unit-00/app-0000-configmap.yaml"

// each tells of each object: its unit, its file, and its text with the lines
// that a kustomization would add, or without.
func (s benchSite) each(plain bool, tell func(unit, file, text string)) {
	for i := range s.objects {
		unit, name, k := fmt.Sprintf("unit-%02d", i/s.perUnit), fmt.Sprintf("app-%04d", i/len(benchKinds)), benchKinds[i%len(benchKinds)]
		namespace, partOf := "", ""
		if plain {
			namespace, partOf = "  namespace: "+unit+"\n", "    app.kubernetes.io/part-of: "+unit+"\n"
		}
		if i%s.perUnit == 0 {
			text := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + unit + "\n"
			if plain {
				text += "  labels:\n" + partOf
			}
			tell(unit, "namespace.yaml", text)
		}
		tell(unit, name+"-"+k.kind+".yaml", strings.NewReplacer("NAMESPACE", namespace, "PARTOF", partOf, "NAME", name, "UNIT", unit).Replace(k.text))
	}
}

// files are the site repo's, by path.
func (s benchSite) files() map[string]string {
	files := map[string]string{
		"site.yaml":           "apiVersion: kingmaker.dev/v1alpha1\nkind: Site\nmetadata: {name: bench}\nspec: {masters: 1, kubernetes: {managed: false}, domain: school.example}\n",
		"machines/pc-01.yaml": "apiVersion: kingmaker.dev/v1alpha1\nkind: Machine\nmetadata: {name: pc-01}\nspec: {address: 10.20.1.11}\n", // the one master
	}
	s.each(false, func(unit, file, text string) {
		folder := "services/" + unit + "/"
		files[folder+file] = text
		if files[folder+"kustomization.yaml"] == "" {
			files[folder+"kustomization.yaml"] = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: " + unit +
				"\nlabels:\n  - pairs: {app.kubernetes.io/part-of: " + unit + "}\nresources:\n"
		}
		files[folder+"kustomization.yaml"] += "  - " + file + "\n"
	})
	return files
}

// write makes dir hold the site, and nothing else but dotfiles.
func (s benchSite) write(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, "services")); err != nil {
		return err
	}
	for name, text := range s.files() {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// manifest is the same site as one file for kubectl.
func (s benchSite) manifest() string {
	var all strings.Builder
	s.each(true, func(_, _, text string) { all.WriteString("---\n" + text) })
	return all.String()
}

func replaceIn(file, old, new string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), old) {
		return fmt.Errorf("%s has no %q", file, old)
	}
	return os.WriteFile(file, []byte(strings.Replace(string(text), old, new, 1)), 0o644)
}
