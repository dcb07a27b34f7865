// Package session decides the life of desktops: of each user's one desktop when it is
// started, when its Pod may be replaced by the next, and when it stops. It also says
// what the Pod and its Secret look like. It is pure; package keeper carries it out.
//
// What is kept is one object of kind Session for each user, so that whoever runs the
// portal knows all of it after a restart. Its spec.generation grows with each Pod.
//
// Decide is given what was seen of one Session, and says the one next thing to do.
// What is promised, and proved by the test against a simulated cluster:
//
//   - Never do programs of a user run in two desktops of his home.
//   - A wanted desktop runs in the end, when a machine is there, whatever became of the
//     one that the former was on.
//   - Unknown is not idle, and not over.
//
// The next Pod is made after a look that found all before it to be over. Whoever goes on
// to the next generation raises it first, and removes Pods after; so a Pod that is made
// by a portal that slept between its look and its deed is of a generation that is over.
//
// A Pod is over when its kubelet has said that every container has ended, or it never
// had a machine. A finalizer keeps it for that: Kubernetes itself forgets Pods whose
// Node object is gone, and nobody would know any more what may still run there.
//
// Where the kubelet is silent there is the *lease*. A desktop runs its user's programs
// only while the portal renews it: for LeaseFor at a time, counted by the desktop's own
// clock from a moment before the portal found the Session at this Pod's generation.
// When it runs out the desktop freezes them where they are, until it is renewed. So,
// once a later generation is in the API, and LeaseFor has gone by since, no program of
// the former one runs: its machine is off, or it is cut off and has frozen them, and its
// kubelet ends it when it comes back. Nobody has to know which. What a short trouble of
// the network or the API has frozen goes on where it was, and nobody has lost anything.
// And a Pod of a generation that is over never gets one, whenever it is made or begins.
//
// What it does not cover: what the former one had written just before, and its machine
// still has to send. A machine that is a VM, and is paused with its clock. A user who
// renews his own lease, for what keeps it runs as himself: he gets two desktops, of his
// own home. And an image that does not keep to it; so the portal says what is run in an
// image, and a desktop begins without a lease.
package session
