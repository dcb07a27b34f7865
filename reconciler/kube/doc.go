// Package kube is the system of Kubernetes objects: it compares what the site
// declares with what the cluster has, and changes the cluster by server-side
// apply as field manager "kingmaker".
//
// # Equal is what the server says
//
// Defaulting is never imitated. Whether an object differs is decided by the
// server's own dry-run, once, and the verdict is recorded so that it can be
// proved again without asking:
//
//	annotation kingmaker.dev/applied: HASH.FIELDS
//
// HASH stands for the object as git declares it, FIELDS for our managedFields
// entry as the server wrote it. When git still gives HASH and the live object
// still has FIELDS, then nobody touched a field of ours: whoever changes or
// removes one takes it out of our entry. Both are in the metadata of the object,
// so that a watch of metadata, one a kind, proves thousands of objects in sync.
// The proof holds for one epoch of a kind: server version, its CRD and the
// admission configuration of the cluster. In a new epoch the server is asked
// again.
//
// # Ours
//
// Objects are ours by the labels of an ApplySet (KEP-3659) whose parent is the
// Site object. The parent lists our kinds in an annotation: a kind is added
// before its first object is written. So what is ours is known from the cluster
// alone at every moment, and a killed daemon leaves no orphan.
package kube
