// Package render turns a site's file tree into documents: the step from git to
// what the site declares. A site repo is written by many people and rendered by
// a daemon that rules a whole site, so the render never executes, never dials
// and never reads a file of the computer that it runs on.
//
//	Units     cuts the site into units: folders that are rendered by themselves
//	scan      follows every kustomization that a unit can reach, and refuses what
//	          points out of the tree (in the parent, which parses nothing else)
//	cache     answers where nothing that the unit reads has changed
//	child     builds the rest: a process of its own, without files, network,
//	          environment and PATH, with caps on memory, time and bytes
//	judge     checks the documents and conceals their secrets
//
// Three walls stand one behind the other, since kustomize executes git with
// text from the files it reads, and dials what looks like a URL:
//
//  1. The scan is positive: an entry counts only if it names a file or folder
//     of the tree. The kustomization is then written anew from what was
//     accepted, with each path begun by "./" or "../", which kustomize takes
//     for nothing but a path. What kustomize reads is what the scan read.
//  2. The child holds, in memory, the files that the scan named, and no others.
//  3. The kernel refuses the child every open, exec and socket.
//
// Kustomize compares each object with each other, so its cost grows with the
// square of their number: 1,000 take half a second and 4,000 twenty. The render
// keeps it linear, with the same documents, wherever kustomize would look at
// each object by itself: a kustomization that only lists resources is read by
// kustomize's own reader, and one that only sets namespace, labels, annotations
// and images is built in slices.
//
// A folder without a kustomization is built part by part: its files are taken
// as they stand, and each folder in it that has a kustomization is built by
// itself. No names are matched across the parts. A Component is not built where
// nothing includes it.
//
// All faults of all units are found in one run. Kustomize stops at its first
// error and likes to quote what it read, so on an error the files are read
// again by inspect, which knows lines and quotes no values.
package render
