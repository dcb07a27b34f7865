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
//   - Never do two Pods of one home run. The next one is made while nothing is known
//     to run of all before it, and *gated*: no scheduler takes it. The gate is opened
//     only after a look that is younger than the Pod found the Session at this very
//     generation, and no other Pod of it. Whoever goes on to the next generation raises
//     it first, and removes Pods after; so a portal that slept between its look and its
//     deed makes a Pod that never runs.
//   - A wanted desktop runs in the end, when a machine is there and the one before is
//     known to be over.
//   - Unknown is not idle, and not over.
//
// A Pod is over when its kubelet has said that every container has ended, or it never
// had a machine. A finalizer keeps it for that: Kubernetes itself forgets Pods whose
// Node object is gone, and nobody would know any more what may still run there. Where
// the kubelet is silent, these are the proofs that the machine runs nothing of it:
//
//	proof                                           because
//	its Node has the taint out-of-service           who sets it has switched the machine off; it is Kubernetes' own word
//	its Machine reports a later boot than the Pod's a desktop does not outlive a boot; see booted
//	its Machine is blank                            it was reset since
//	its Machine is silent for SelfFence             only where machines promise to stop desktops by themselves
//	an administrator says so                        for this one Pod
package session
