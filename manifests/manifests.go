// Package manifests holds the Kubernetes objects that Kingmaker brings to every
// site, as kustomize bases. The source renders them together with the site repo,
// and Site.spec.platform.patches changes them as an overlay would.
//
//	base  the namespace kingmaker-system and the CRDs of the site kinds
//
// The CRDs are generated from the Go types: go test ./schema -update.
package manifests

import (
	"embed"
	"io/fs"
)

//go:embed base
var files embed.FS

// Files are the bases, each a folder with a kustomization.yaml.
func Files() fs.FS { return files }
