package machine_test

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/machine"
	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

const aToken = "abcdef.c4n4ry0123456789"

func TestInvitation(t *testing.T) {
	for _, masters := range []string{"10.0.0.11:6443", "10.0.0.12:6443,10.0.0.13:7443", "[fd00::11]:6443"} {
		made := machine.Invitation{CAHash: "sha256:" + strings.Repeat("ab", 32), Token: plan.NewSecret(aToken)}
		for text := range strings.SplitSeq(masters, ",") {
			made.Masters = append(made.Masters, netip.MustParseAddrPort(text))
		}
		words := strings.Fields(made.Line())
		if len(words) != 7 || strings.Join(words[:2], " ") != "noded join" || words[2] != masters || words[3] != "--ca-hash" || words[5] != "<<<" {
			t.Fatalf("not the line: %q", words)
		}
		read, err := machine.ParseInvitation(words[2], words[4], words[6])
		if err != nil || !reflect.DeepEqual(read, made) {
			t.Errorf("read %+v, %v\nmade %+v", read, err, made)
		}
		if read.TokenID() != "abcdef" || read.TokenSecret() != "c4n4ry0123456789" {
			t.Errorf("token %q and %q", read.TokenID(), read.TokenSecret())
		}
	}
}

func TestParseInvitation(t *testing.T) {
	sum := "sha256:" + strings.Repeat("ab", 32)
	for _, test := range []struct{ masters, hash, token, says string }{
		{"10.0.0.11:6443", sum, aToken, ""},
		{" 10.0.0.11 ", strings.ToUpper(sum), aToken + "\n", ""}, // the port is known
		{"pc-01:6443", sum, aToken, `"pc-01:6443" is not the address of a master`},
		{"", sum, aToken, `"" is not the address of a master`},
		{"10.0.0.11:6443", "", aToken, `--ca-hash "" is not sha256: and 64 digits`},
		{"10.0.0.11:6443", sum[:20], aToken, "is not sha256: and 64 digits"},
		{"10.0.0.11:6443", sum, "", "there is no token on standard input"},
		{"10.0.0.11:6443", sum, strings.Replace(aToken, ".", "", 1), "what is on standard input is not a token"},
	} {
		i, err := machine.ParseInvitation(test.masters, test.hash, test.token)
		if test.says == "" {
			if err != nil || i.Masters[0] != netip.MustParseAddrPort("10.0.0.11:6443") || i.CAHash != sum || i.Token.Value() != aToken {
				t.Errorf("%+v: %+v, %v", test, i, err)
			}
			continue
		}
		var f *plan.Fault
		if !errors.As(err, &f) || f.Code != machine.LineInvalid || !strings.Contains(err.Error(), test.says) || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
