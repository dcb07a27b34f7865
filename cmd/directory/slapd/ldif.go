package slapd

import (
	"bufio"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	goldap "github.com/go-ldap/ldap/v3"
)

// A dump begins and ends with a line of ours, so that one that was cut short is
// not taken for a smaller directory.
const (
	firstLine = "# Kingmaker directory 1"
	lastLine  = "# entries: "
)

// computed attributes are made up by slapd when one asks, and cannot be loaded.
var computed = []string{"entrydn", "subschemasubentry", "hassubordinates", "numsubordinates", "auditcontext"}

// Dump writes everything that a server holds, whatever slapd notes for itself
// included: it can be loaded, and goes on as if it had been there all the time. Conn
// is bound as the replicator.
//
// It is no picture of one moment, and need not be: it says how far the server was
// when it began (contextCSN), and who loads it fetches what changed since.
//
// Where it is loaded as another server, Dump writes that it has changed something
// itself, long ago. Slapd notes how far it is once in a while only, and after a crash
// looks for later changes of its own just where it had noted some; what it finds not,
// it would never tell the others.
func Dump(conn *goldap.Conn, base string, server int, to io.Writer) (entries int, err error) {
	out := bufio.NewWriterSize(to, 1<<16)
	fmt.Fprintln(out, firstLine)
	paging := goldap.NewControlPaging(1000)
	// Before the first entry is read, and not with it.
	root, err := ReadRoot(conn, base)
	if err != nil {
		return 0, err
	}
	for {
		request := goldap.NewSearchRequest(base, goldap.ScopeWholeSubtree, goldap.NeverDerefAliases, 0, 0, false,
			"(objectClass=*)", []string{"*", "+"}, []goldap.Control{paging})
		result, err := conn.Search(request)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", base, err)
		}
		for _, e := range result.Entries {
			isRoot := strings.EqualFold(e.DN, base)
			writeLine(out, "dn", []byte(e.DN))
			for _, a := range e.Attributes {
				name := strings.ToLower(a.Name)
				if slices.Contains(computed, name) || isRoot && name == "contextcsn" {
					continue
				}
				for _, value := range a.ByteValues {
					writeLine(out, a.Name, value)
				}
			}
			if isRoot {
				for _, csn := range root.CSNs {
					writeLine(out, "contextCSN", []byte(csn))
				}
				if server > 0 {
					writeLine(out, "contextCSN", []byte(early(server)))
				}
			}
			fmt.Fprintln(out)
			entries++
		}
		control, _ := goldap.FindControl(result.Controls, goldap.ControlTypePaging).(*goldap.ControlPaging)
		if control == nil || len(control.Cookie) == 0 {
			break
		}
		paging.SetCookie(control.Cookie)
	}
	fmt.Fprintf(out, "%s%d\n", lastLine, entries)
	if err := out.Flush(); err != nil {
		return 0, fmt.Errorf("write the directory: %w", err)
	}
	return entries, nil
}

// early is a CSN of a server from before all others.
func early(server int) string {
	return fmt.Sprintf("20000101000000.000000Z#000000#%03x#000000", server)
}

// writeLine writes one value as RFC 2849 has it, without breaking long lines.
func writeLine(out *bufio.Writer, name string, value []byte) {
	plain := true
	for i, b := range value {
		if b == 0 || b == '\n' || b == '\r' || b >= 0x80 || i == 0 && (b == ' ' || b == ':' || b == '<') || i == len(value)-1 && b == ' ' {
			plain = false
			break
		}
	}
	out.WriteString(name)
	if plain {
		out.WriteString(": ")
		out.Write(value)
	} else {
		out.WriteString(":: ")
		out.WriteString(base64.StdEncoding.EncodeToString(value))
	}
	out.WriteByte('\n')
}

// Root is what the root of a directory says about all of it.
type Root struct {
	ID   string   // which directory it is
	CSNs []string // the last change of each server
}

// ReadRoot asks a server. Conn is bound as the replicator.
func ReadRoot(conn *goldap.Conn, base string) (Root, error) {
	request := goldap.NewSearchRequest(base, goldap.ScopeBaseObject, goldap.NeverDerefAliases, 0, 0, false,
		"(objectClass=*)", []string{"entryUUID", "contextCSN"}, nil)
	result, err := conn.Search(request)
	if err != nil {
		return Root{}, fmt.Errorf("read %s: %w", base, err)
	}
	if len(result.Entries) != 1 {
		return Root{}, fmt.Errorf("read %s: %d entries", base, len(result.Entries))
	}
	e := result.Entries[0]
	r := Root{ID: e.GetAttributeValue("entryUUID"), CSNs: e.GetAttributeValues("contextCSN")}
	if r.ID == "" || len(r.CSNs) == 0 {
		return Root{}, fmt.Errorf("read %s: it does not say how far it is", base)
	}
	return r, nil
}

// Behind is how many servers' changes a has not all seen that b has.
func (a Root) Behind(b Root) (n int) {
	mine := a.byServer()
	for server, csn := range b.byServer() {
		if mine[server] < csn { // they are of one length, and begin with the time
			n++
		}
	}
	return n
}

func (a Root) byServer() map[string]string {
	all := map[string]string{}
	for _, csn := range a.CSNs {
		if parts := strings.Split(csn, "#"); len(parts) == 4 {
			all[parts[2]] = csn
		}
	}
	return all
}

// Renew copies a dump, gzip or not, into one of another directory: its root gets the
// new ID, and the note that Dump speaks of. What slapcat wrote is taken as well. A dump that was cut short is an error;
// what was written by then must not be used.
func Renew(from io.Reader, to io.Writer, base, id string, server int) (entries int, err error) {
	in := bufio.NewReaderSize(from, 1<<16)
	if magic, _ := in.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		zip, err := gzip.NewReader(in)
		if err != nil {
			return 0, err
		}
		in = bufio.NewReaderSize(zip, 1<<16)
	}
	out := bufio.NewWriterSize(to, 1<<16)
	var ours, root, renewed, noted bool
	said := -1
	for n := 1; ; n++ {
		line, err := unfold(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read the backup: %w", err)
		}
		name, value, _ := strings.Cut(line, ":")
		switch {
		case n == 1 && line == firstLine:
			ours = true
		case strings.HasPrefix(line, lastLine):
			if said, err = strconv.Atoi(line[len(lastLine):]); err != nil {
				return 0, fmt.Errorf("read the backup: its last line: %w", err)
			}
		case strings.EqualFold(name, "dn"):
			entries++
			dn := strings.TrimSpace(value)
			if encoded, ok := strings.CutPrefix(value, ":"); ok {
				decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
				if err != nil {
					return 0, fmt.Errorf("read the backup: entry %d: %w", entries, err)
				}
				dn = string(decoded)
			}
			if root = strings.EqualFold(dn, base); !root && entries == 1 {
				return 0, fmt.Errorf("the backup is of %s, and this directory is %s", dn, base)
			}
		case root && strings.EqualFold(name, "entryUUID"):
			line, renewed = "entryUUID: "+id, true
		case root && !noted && (line == "" || strings.EqualFold(name, "contextCSN")): // with the others, or last
			fmt.Fprintln(out, "contextCSN:", early(server))
			noted = true
		}
		out.WriteString(line)
		out.WriteByte('\n')
	}
	switch {
	case entries == 0 || !renewed:
		return 0, errors.New("the backup does not hold a directory")
	case ours && said != entries:
		return 0, fmt.Errorf("the backup was cut short: it has %d entries and not the end", entries)
	}
	return entries, out.Flush()
}

// unfold reads one line of LDIF, which goes on in lines that begin with a space.
func unfold(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil && (err != io.EOF || line == "") {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	for {
		next, _ := in.Peek(1)
		if len(next) == 0 || next[0] != ' ' || line == "" {
			return line, nil
		}
		more, err := in.ReadString('\n')
		if err != nil && err != io.EOF {
			return "", err
		}
		line += strings.TrimRight(more[1:], "\r\n")
	}
}
