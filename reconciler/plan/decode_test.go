package plan_test

import (
	"strings"
	"testing"

	"github.com/kingmaker-io/kingmaker/reconciler/plan"
)

type decoded struct {
	List   []string          `json:"list,omitempty"`
	Map    map[string]string `json:"map,omitempty"`
	Flag   *bool             `json:"flag,omitempty"`
	Secret plan.Secret       `json:"secret,omitzero"`
	Amount plan.Quantity     `json:"amount,omitempty"`
	After  plan.Duration     `json:"after,omitzero"`
}

func decode(spec map[string]any) (decoded, error) {
	return plan.Decode[decoded](plan.Object{Spec: map[string]any{"spec": spec}})
}

func TestDecodeAbsentIsNotEmpty(t *testing.T) {
	absent, err := decode(map[string]any{})
	if err != nil || absent.List != nil || absent.Map != nil || absent.Flag != nil {
		t.Errorf("absent: %+v, %v", absent, err)
	}
	empty, err := decode(map[string]any{"list": []any{}, "map": map[string]any{}, "flag": false})
	if err != nil || empty.List == nil || empty.Map == nil || empty.Flag == nil {
		t.Errorf("empty: %+v, %v", empty, err)
	}
}

func TestDecodeKeepsSecrets(t *testing.T) {
	d, err := decode(map[string]any{"secret": plan.NewSecret("canary"), "amount": int64(2), "after": "10m"})
	if err != nil || d.Secret.Value() != "canary" || d.Amount != "2" || d.After.Minutes() != 10 {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for want, spec := range map[string]map[string]any{
		`unknown field "lost"`: {"lost": plan.NewSecret("canary")},
		"a secret is text":     {"secret": []any{plan.NewSecret("canary")}},
		"cannot unmarshal":     {"list": plan.NewSecret("canary")},
		"a duration is text":   {"after": int64(5)},
		"an amount is text":    {"amount": 0.5},
	} {
		_, err := decode(spec)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("have %v, want %s", err, want)
		}
	}
	if _, err := plan.Decode[decoded](plan.Object{}); err == nil {
		t.Error("a document without a spec was decoded")
	}
}
