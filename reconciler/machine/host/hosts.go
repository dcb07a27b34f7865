package host

import (
	"bytes"
	"fmt"
	"strings"
)

const (
	hostsFile  = "/etc/hosts"
	hostsBegin = "# kingmaker: begin"
	hostsEnd   = "# kingmaker: end"
)

// EnsureHosts maps the name of the site's API to the machine itself, between
// two lines of comment in /etc/hosts, and leaves all else as it is. Docker
// writes that file anew whenever a container starts.
func EnsureHosts(h *Host, site string) (changed bool, err error) {
	changed, err = h.setHosts(fmt.Sprintf("%s\n127.0.0.1 %s\n%s\n", hostsBegin, Endpoint(site), hostsEnd))
	if err != nil {
		return changed, fmt.Errorf("map %s to this machine in %s: %w", Endpoint(site), hostsFile, err)
	}
	return changed, nil
}

// RemoveHosts takes away what EnsureHosts wrote.
func RemoveHosts(h *Host) error {
	if _, err := h.setHosts(""); err != nil {
		return fmt.Errorf("take the site's name out of %s: %w", hostsFile, err)
	}
	return nil
}

func (h *Host) setHosts(block string) (changed bool, err error) {
	have, err := h.Read(hostsFile)
	if err != nil {
		return false, err
	}
	want := withBlock(string(have), block)
	if string(have) == want {
		return false, nil
	}
	return true, h.Write(hostsFile, []byte(want), 0o644)
}

// withBlock replaces what is between our two lines of comment, and these; it
// goes to the end of a text that has none. A beginning whose end somebody
// removed is that one line.
func withBlock(text, block string) string {
	var out bytes.Buffer
	written := false
	lines := strings.SplitAfter(text, "\n")
	for n := 0; n < len(lines); n++ {
		if strings.TrimSpace(lines[n]) != hostsBegin {
			out.WriteString(lines[n])
			continue
		}
		if !written {
			out.WriteString(block)
			written = true
		}
		for end := n; end < len(lines); end++ {
			if strings.TrimSpace(lines[end]) == hostsEnd {
				n = end
				break
			}
		}
	}
	if !written && block != "" {
		if out.Len() > 0 && !bytes.HasSuffix(out.Bytes(), []byte("\n")) {
			out.WriteByte('\n')
		}
		out.WriteString(block)
	}
	return out.String()
}
