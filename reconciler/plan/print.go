package plan

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"sigs.k8s.io/yaml"
)

// sign is the mark of an action in front of its header line.
func (a Action) sign() string {
	return map[Action]string{Create: "+", Update: "~", Replace: "±", Delete: "-"}[a]
}

// Short is a commit as people read it.
func Short(commit string) string {
	name, hash, ok := strings.Cut(commit, "-") // "dir-HASH" of a plain folder
	if !ok {
		return commit[:min(12, len(commit))]
	}
	return name + "-" + hash[:min(12, len(hash))]
}

// header is the one line that stands for a change.
func (c Change) header() string {
	return fmt.Sprintf("%s %s %s: %s", c.Action().sign(), c.Action(), c.ID, c.Why)
}

// UnifiedDiff is the change as a unified diff of YAML. Secrets show whether
// they differ, and nothing else.
func (c Change) UnifiedDiff() []byte {
	var have, want any
	switch {
	case c.Have == nil:
		want = maskOne(c.Want.Spec, "")
	case c.Want == nil:
		have = maskOne(c.Have.Spec, "")
	default:
		have, want = maskPair(c.Have.Spec, c.Want.Spec)
	}
	text := diff.Diff("live/"+c.ID.String(), toYAML(have), "git/"+c.ID.String(), toYAML(want))
	if _, rest, ok := bytes.Cut(text, []byte("\n")); ok { // the line "diff live git"
		return rest
	}
	return text
}

func toYAML(tree any) []byte {
	if m, ok := tree.(map[string]any); !ok || m == nil {
		return nil
	}
	text, err := yaml.Marshal(tree)
	if err != nil {
		// A masked tree holds nothing that YAML cannot say.
		return fmt.Appendf(nil, "%v\n", err)
	}
	return text
}

// Totals is the last line of every print: what the plan would do.
func (p *Plan) Totals() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plan for %s:", Short(p.Commit))
	if p.Settled() {
		return b.String() + " nothing to change"
	}
	for i, a := range Actions() {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, " %d to %s", p.Count(a), a)
	}
	fmt.Fprintf(&b, "; %d withheld, %d waiting", len(p.Withheld), len(p.Waiting))
	return b.String()
}

// WriteDiff prints a unified diff per change under its header line, then what
// is withheld, what waits, the notes, and the totals. Color is for terminals.
func (p *Plan) WriteDiff(w io.Writer, color bool) error {
	out := &printer{w: w, color: color}
	for _, c := range p.Changes {
		out.line(bold, c.header())
		out.diff(c.UnifiedDiff())
	}
	p.writeRest(out)
	return out.err
}

// WriteSummary prints one line per change, and the rest as WriteDiff does.
func (p *Plan) WriteSummary(w io.Writer, color bool) error {
	out := &printer{w: w, color: color}
	for _, c := range p.Changes {
		out.line(colorOf(c.Action()), c.header())
	}
	p.writeRest(out)
	return out.err
}

func (p *Plan) writeRest(out *printer) {
	for _, h := range p.Withheld {
		out.line(yellow, fmt.Sprintf("! withheld: %s %s: %s (%s)", h.Change.Action(), h.Change.ID, h.Reason.Cause, orNone(h.Reason.Hint)))
	}
	for _, f := range p.Waiting {
		out.line(yellow, "… waiting: "+f.Error()+" ["+string(f.Code)+"]")
	}
	for _, f := range p.Notes {
		out.line(plain, "i note: "+f.Error()+" ["+string(f.Code)+"]")
	}
	out.line(bold, p.Totals())
}

func orNone(hint string) string {
	if hint == "" {
		return "nothing to do"
	}
	return hint
}

// Escape sequences of a terminal; plain has none.
const (
	plain  = ""
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
	reset  = "\x1b[0m"
)

func colorOf(a Action) string {
	return map[Action]string{Create: green, Update: cyan, Replace: yellow, Delete: red}[a]
}

// printer writes lines, coloured where it may, until the first error.
type printer struct {
	w     io.Writer
	color bool
	err   error
}

func (p *printer) line(color, text string) {
	if p.err != nil {
		return
	}
	text = printable(text)
	if p.color && color != plain {
		text = color + text + reset
	}
	_, p.err = fmt.Fprintln(p.w, text)
}

func (p *printer) diff(text []byte) {
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "+"):
			p.line(green, line)
		case strings.HasPrefix(line, "-"):
			p.line(red, line)
		case strings.HasPrefix(line, "@@"):
			p.line(cyan, line)
		default:
			p.line(plain, line)
		}
	}
}

// printable keeps text of the site repo from steering the reader's terminal:
// control characters and marks that turn the direction of writing are shown
// as escapes.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return r
		case r < ' ', r == 0x7f, r >= 0x80 && r < 0xa0,
			r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f:
			return '\uFFFD'
		}
		return r
	}, text)
}
