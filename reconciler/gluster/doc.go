// Package gluster is the room of bricks and volumes, as the daemon sees them
// and as a machine carries them out.
//
// It owns the kind Volume of the site repo. For now it parses and validates
// it; the System comes with its own issue.
package gluster
