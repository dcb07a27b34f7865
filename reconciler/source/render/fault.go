package render

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

// Codes of what the render refuses.
const (
	RemoteBase       plan.Code = "RemoteBase"       // a URL, or what kustomize would take for one
	OutsideSite      plan.Code = "OutsideSite"      // a path that leaves the site repo, or that kustomize may not read
	BadFileName      plan.Code = "BadFileName"      // a name that people or other systems would misread
	NotRegular       plan.Code = "NotRegular"       // a symlink, a submodule or a device
	BaseCycle        plan.Code = "BaseCycle"        // a kustomization that includes itself
	BadKustomization plan.Code = "BadKustomization" // a kustomization that kustomize would refuse
	PluginRefused    plan.Code = "PluginRefused"    // helm, or a plugin that runs something
	BadYAML          plan.Code = "BadYAML"          // a file that is not YAML, or not what Kubernetes objects are made of
	BadSecret        plan.Code = "BadSecret"        // a value of a Secret that Kubernetes refuses; never quoted
	EncryptedField   plan.Code = "EncryptedField"   // a field is encrypted that has to be readable
	NotDecrypted     plan.Code = "NotDecrypted"     // a value is encrypted, and belongs to no encrypted file
	TooBig           plan.Code = "TooBig"           // more bytes, documents or levels than a unit may have
	LargeUnit        plan.Code = "LargeUnit"        // a warning: a unit that renders slowly
	RenderFailed     plan.Code = "RenderFailed"     // kustomize refuses the unit
	RenderMemory     plan.Code = "RenderMemory"     // the render of the unit took too much memory
	RenderTime       plan.Code = "RenderTime"       // the render of the unit took too long
	RenderCrashed    plan.Code = "RenderCrashed"    // the render of the unit died
)

// largeUnit is how many objects kustomize renders in about half a second.
const largeUnit = 1000

// Warnings names the units that have so many objects that they should be split,
// and says once that documents are read without their key.
func Warnings(documents []Document) []*plan.Fault {
	count := map[string]int{}
	var warnings []*plan.Fault
	sealed, first := 0, ""
	for _, d := range documents {
		if d.Sealed {
			if sealed++; sealed == 1 {
				first = d.Origin
			}
		}
		if count[d.Unit]++; count[d.Unit] == largeUnit+1 {
			warnings = append(warnings, &plan.Fault{Code: LargeUnit, Where: d.Unit})
		}
	}
	for _, w := range warnings {
		w.Cause = fmt.Sprintf("the unit has %d objects, and kustomize's cost grows with their square", count[w.Where])
		w.Hint = "split it: without a kustomization.yaml in the root each folder is a unit, and under services each folder is one"
	}
	if sealed > 0 {
		warnings = append(warnings, &plan.Fault{Code: plan.SealedValues, Where: first,
			Cause: fmt.Sprintf("documents with encrypted values: %d, here first; there is no key, so the values are neither checked nor compared", sealed),
			Hint:  "with the site's age key in a file age.agekey in the folder of --credentials they are"})
	}
	return warnings
}

// known are the errors of kustomize that are worth translating, each with what
// may be shown of it: names of objects and files, never values.
var known = []struct {
	pattern     *regexp.Regexp
	cause, hint string
}{
	{regexp.MustCompile(`no resource matches strategic merge patch "?([^":]+)"?`), "a patch is for %s, which the unit does not have", "compare kind, name and namespace of the patch with those of the object before namePrefix and the like"},
	{regexp.MustCompile(`no matches for (?:Id|OriginalId|CurrentId) ([^;]+); failed to find unique target`), "a patch is for %s, which the unit does not have", "compare kind, name and namespace of the patch with those of the object before namePrefix and the like"},
	{regexp.MustCompile(`may not add resource with an already registered id: ([^'\s]+)`), "%s is there twice", "each object may be declared once"},
	{regexp.MustCompile(`id resid\.ResId\{.*?Kind:"([^"]*)".*?Name:"([^"]*)".*?\} (?:exists; can not use behavior|does not exist)`), "the generator's behavior does not fit %s %s", "create is for what is not there yet, merge and replace are for what is"},
	{regexp.MustCompile(`resource with name (\S+) does not match a config`), "replicas names %s, which is no workload of the unit", ""},
	{regexp.MustCompile(`unable to load external plugin '([^']*)'`), "%s is not a plugin that kustomize has built in", ""},
	{regexp.MustCompile(`cycle detected`), "the kustomization includes itself", ""},
	{regexp.MustCompile(`unable to parse SM or JSON patch`), "a patch is neither a strategic merge patch nor a JSON 6902 patch", "a strategic merge patch has apiVersion, kind and metadata.name; a JSON patch is a list of operations"},
	{regexp.MustCompile(`must specify a target for JSON patch`), "a JSON patch has no target", "say in target which objects it is for"},
	{regexp.MustCompile(`nothing selected by ([\w.~/\[\]-]+)`), "a replacement takes its value from %s, which the unit does not have", ""},
	{regexp.MustCompile(`unable to find field "?([\w./\[\]-]+)"? in replacement target`), "a replacement writes to the field %s, which an object does not have", "options.create makes it"},
	{regexp.MustCompile(`the specified OpenAPI version is not built in`), "kustomize does not know the version in openapi", ""},
}

// longest is how much of kustomize's own words is shown, in bytes.
const longest = 300

// explain says in one line what kustomize's error means. A unit that holds
// secrets shows only what is known to quote none of them.
func explain(err error, secrets bool) (cause, hint string) {
	text := err.Error()
	for _, k := range known {
		if m := k.pattern.FindStringSubmatch(text); m != nil {
			args := make([]any, len(m)-1)
			for i := range args {
				args[i] = strings.ReplaceAll(m[i+1], ".[noGrp]", "")
			}
			return fmt.Sprintf(k.cause, args...), k.hint
		}
	}
	if secrets {
		return "kustomize refuses the unit; its message is withheld, since the unit holds secrets", "kustomize build shows it, in a place where the secrets may be seen"
	}
	// The outer errors say what kustomize tried; the inner one says what it found.
	if i := strings.LastIndex(text, "accumulation err='"); i > 0 {
		text = text[i:]
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + " ..."
	}
	return "kustomize: " + text, ""
}
