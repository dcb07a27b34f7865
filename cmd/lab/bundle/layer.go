package bundle

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// An entry is one file, link or folder of a layer. All are root's and of the
// epoch.
type entry struct {
	name       string // without the first slash; ends in one for a folder
	mode       fs.FileMode
	content    []byte
	link       string // what it points to, for a symbolic link
	capability string // the attribute security.capability, raw; "" is none
}

// netBindService is the file capability cap_net_bind_service=ep as the kernel
// stores it: VFS_CAP_REVISION_2 with the effective bit, then the permitted and
// inheritable sets, low halves first, all little-endian (linux/capability.h). A
// program that is not root keeps from its container's capabilities only those
// that its file has.
const netBindService = "\x01\x00\x00\x02" + "\x00\x04\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"

// tarOf is the layer with these entries, sorted, and the folders that they are
// in.
func tarOf(entries []entry) ([]byte, error) {
	known := map[string]entry{}
	for _, e := range entries {
		known[e.name] = e
	}
	for _, e := range entries {
		for dir := path.Dir(strings.TrimSuffix(e.name, "/")); dir != "."; dir = path.Dir(dir) {
			if _, ok := known[dir+"/"]; !ok {
				known[dir+"/"] = entry{name: dir + "/", mode: 0o755}
			}
		}
	}
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names) // which puts a folder before what is in it

	size := 0
	for _, e := range known {
		size += len(e.content) + 2048 // its header, and what fills its last block
	}
	content := bytes.NewBuffer(make([]byte, 0, size)) // grown bit by bit it would take thrice as much
	out := tar.NewWriter(content)
	for _, name := range names {
		e := known[name]
		header := &tar.Header{
			Name:     name,
			Typeflag: tar.TypeReg,
			Mode:     int64(e.mode),
			Size:     int64(len(e.content)),
			Linkname: e.link,
			ModTime:  time.Unix(0, 0),
		}
		switch {
		case strings.HasSuffix(name, "/"):
			header.Typeflag = tar.TypeDir
		case e.link != "":
			header.Typeflag = tar.TypeSymlink
		}
		if e.capability != "" {
			header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": e.capability}
		}
		if err := out.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := out.Write(e.content); err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return content.Bytes(), nil
}
