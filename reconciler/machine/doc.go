// Package machine is the room of the PCs: which machines a site has, which of
// them are masters, and what one machine does to itself.
//
// It owns the kind Machine, in its two places. The document in the site repo
// says which PC it is and what may be done with it (Machine, Validate). The
// object in the cluster is the contract between the daemon and the agent of
// that one machine: the daemon alone writes its spec (Assigned), the agent
// alone its status (Status).
//
// System compares the machines that git declares with the Nodes that joined:
//
//	git       Node      becomes
//	declared  none      a Machine, for the agent to find; it is noted that it has not joined
//	declared  joined    a Machine with the role that the Node came with; labels and taints on the Node
//	none      joined    listed: no Machine, no new Pods (taint kingmaker.dev/unlisted), and a note;
//	                    open: a Machine with its role
//	removed   joined    the Machine goes; the Node loses what git gave it, and gets the taint
//
// A master never gets the taint, and to take one out of git needs consent there.
// What others put on a Node is left alone: an annotation of the Machine records
// which labels and taints are ours, where no Node can write. A Node that was
// deleted and registers anew gets everything again.
//
// Roles are taken over as noded init and join gave them; package roles decides who
// becomes a master after that, and package crown carries it out. What a machine does to itself is in host, how it
// becomes a member in member, and what runs on it in agent.
package machine
