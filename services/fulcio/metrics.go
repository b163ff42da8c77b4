package fulcio

import (
	"crypto/x509"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Reasons of a refusal. They label a metric, so they stay few.
const (
	reasonToken       = "token"
	reasonUnreachable = "issuer_unreachable"
	reasonReplay      = "replay"
	reasonKey         = "key"
	reasonClaims      = "claims"
	reasonLog         = "ct_log"
	reasonAudit       = "audit"
	reasonGone        = "client_gone"
	reasonInternal    = "internal"
)

var reasons = []string{
	reasonToken, reasonUnreachable, reasonReplay, reasonKey, reasonClaims, reasonLog, reasonAudit, reasonGone, reasonInternal,
}

// metrics are the service's own. Upstream's, such as fulcio_new_certs, are in
// Prometheus's default registry.
type metrics struct {
	issued      prometheus.Counter
	refused     *prometheus.CounterVec
	unreachable *prometheus.CounterVec
	expiry      prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, chain []*x509.Certificate) (*metrics, error) {
	m := &metrics{
		issued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sigbox_fulcio_issued_total", Help: "Certificates issued and put on record.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sigbox_fulcio_refused_total", Help: "Requests for a certificate that were refused or failed.",
		}, []string{"reason"}),
		unreachable: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sigbox_fulcio_issuer_failures_total", Help: "Attempts to read an issuer's metadata or keys that failed.",
		}, []string{"issuer"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sigbox_fulcio_chain_expiry_timestamp_seconds", Help: "When the first certificate of the CA chain ends.",
		}),
	}
	end := chain[0].NotAfter
	for _, c := range chain {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	m.expiry.Set(float64(end.UnixNano()) / float64(time.Second))
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.issued), reg.Register(m.refused), reg.Register(m.unreachable), reg.Register(m.expiry))
}
