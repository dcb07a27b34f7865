// Package manifests holds the Kubernetes objects that Kingmaker brings to every
// site, as kustomize bases. The source renders them together with the site repo,
// and Site.spec.platform.patches changes them as an overlay would.
//
//	base             the namespace kingmaker-system and the CRDs of the site kinds
//	network/host-gw  flannel, the network of the Pods, with routes
//	network/vxlan    the same with tunnels
//	reconciler       reconcile itself, in the cluster
//	machines         what the agents of machines may do
//	directory        people and groups in LDAP
//	directory/backup its nightly backup, for sites that have a volume for that
//	portal           where people sign in, and what their desktops may do
//
// All but base are for clusters that noded made: Site.spec.kubernetes.managed.
//
// Images are named without a tag, as kingmaker.dev/NAME. They are never pulled:
// each machine has them from the bundle. The source adds the tags.
//
// The CRDs are generated from the Go types: go test ./schema -update.
package manifests

import (
	"embed"
	"io/fs"
)

//go:embed base directory machines network portal reconciler
var files embed.FS

// Files are the bases, each a folder with a kustomization.yaml.
func Files() fs.FS { return files }

// Images are the tags of the images in the bases, by name. Those of reconcile,
// directory and portal are the version of whoever asks: reconcile deploys itself, and
// what was built with it.
func Images(version string) map[string]string {
	return map[string]string{
		"kingmaker.dev/directory": version,
		"kingmaker.dev/flannel":   "v0.28.4", // as cmd/lab/build/flannel has it; a test compares
		"kingmaker.dev/portal":    version,
		"kingmaker.dev/reconcile": version,
	}
}
