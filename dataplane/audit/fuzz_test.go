package audit

import (
	"testing"

	"google.golang.org/protobuf/proto"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// FuzzSummarise reads any bytes as a record: where the full decoder reads it too, both see the same.
func FuzzSummarise(f *testing.F) {
	for _, rec := range []*auditv1.Record{
		{Id: "a", Kind: auditv1.RecordKind_RECORD_KIND_INTENT},
		{Id: "b", Kind: auditv1.RecordKind_RECORD_KIND_OUTCOME, IntentId: "a", Detail: settled + "17"},
		{Principal: &auditv1.Person{Name: "alice"}, Detail: settled + "-1", Grants: []string{"g"}},
	} {
		b, err := proto.Marshal(rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := summarise(b)
		var rec auditv1.Record
		if proto.Unmarshal(b, &rec) != nil {
			return
		}
		if !ok || s.id != rec.GetId() || s.intent != rec.GetIntentId() || s.kind != rec.GetKind() {
			t.Fatalf("%+v is %v", s, &rec)
		}
	})
}
