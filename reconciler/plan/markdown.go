package plan

import (
	"fmt"
	"io"
	"strings"
)

// MarkdownLimit is the size in bytes to which WriteMarkdown cuts: a comment on
// GitHub holds 65,536 characters.
const MarkdownLimit = 60_000

// WriteMarkdown prints the plan as a comment for a pull request: the totals, a
// table of the changes, and each diff folded. What does not fit in the limit,
// in bytes, is left out and counted; zero takes MarkdownLimit.
func (p *Plan) WriteMarkdown(w io.Writer, limit int) error {
	if limit <= 0 {
		limit = MarkdownLimit
	}
	doc := &cut{limit: limit - 200} // room for the last words
	doc.add("### Kingmaker: " + p.Totals() + "\n\n")
	for _, h := range p.Withheld {
		doc.add(fmt.Sprintf("> **withheld**: %s `%s`: %s\n\n", h.Change.Action(), escape(h.Change.ID.String()), escape(h.Reason.Cause+hint(h.Reason))))
	}
	for _, f := range p.Waiting {
		doc.add(fmt.Sprintf("> **waiting**: %s [%s]\n\n", escape(f.Error()), f.Code))
	}
	for _, f := range p.Notes {
		doc.add(fmt.Sprintf("> note: %s [%s]\n\n", escape(f.Error()), f.Code))
	}
	if len(p.Changes) > 0 {
		doc.add("| | object | why |\n|---|---|---|\n")
	}
	rows := 0
	for _, c := range p.Changes {
		if doc.add(fmt.Sprintf("| %s | `%s` | %s |\n", c.Action(), escape(c.ID.String()), escape(c.Why))) {
			rows++
		}
	}
	doc.add("\n")
	diffs := 0
	for _, c := range p.Changes {
		diff := c.UnifiedDiff()
		fence := fenceFor(diff)
		if doc.add(fmt.Sprintf("<details><summary>%s <code>%s</code></summary>\n\n%sdiff\n%s%s\n</details>\n\n",
			c.Action(), escape(c.ID.String()), fence, printableLines(diff), fence)) {
			diffs++
		}
	}
	if diffs < len(p.Changes) {
		doc.text.WriteString(fmt.Sprintf("\nCut to size: %d of %d changes are in the table, %d with their diff. `reconcile --dry-run` shows all.\n",
			rows, len(p.Changes), diffs))
	}
	_, err := io.WriteString(w, doc.text.String())
	return err
}

func hint(f *Fault) string {
	if f.Hint == "" {
		return ""
	}
	return " (" + f.Hint + ")"
}

// cut is text up to a limit; a piece is taken whole or not at all.
type cut struct {
	text  strings.Builder
	limit int
}

func (c *cut) add(piece string) bool {
	if c.text.Len()+len(piece) > c.limit {
		return false
	}
	c.text.WriteString(piece)
	return true
}

// escape keeps text of the site repo from being read as markup.
func escape(text string) string {
	return strings.NewReplacer("|", "\\|", "<", "&lt;", ">", "&gt;", "`", "'", "\n", " ", "@", "@\u200b").Replace(printable(text))
}

// fenceFor is a code fence longer than any in the text, so that no line of a
// diff can end it.
func fenceFor(text []byte) string {
	fence := "```"
	for strings.Contains(string(text), fence) {
		fence += "`"
	}
	return fence
}

func printableLines(text []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		b.WriteString(printable(strings.TrimSuffix(line, "\n")) + "\n")
	}
	return b.String()
}
