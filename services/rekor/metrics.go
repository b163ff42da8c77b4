package rekor

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are per route: paths hold what clients choose, routes do not.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sigbox_rekor_requests_total",
			Help: "Requests to the log, by route and status code.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sigbox_rekor_request_seconds",
			Help:    "Time that requests to the log took, by route.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"route"}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.requests), reg.Register(m.seconds))
}

func (m metrics) unregister(reg prometheus.Registerer) {
	if reg != nil && m.requests != nil {
		reg.Unregister(m.requests)
		reg.Unregister(m.seconds)
	}
}

func (m metrics) observe(r *http.Request, code int, took time.Duration) {
	name := route(r)
	m.requests.WithLabelValues(name, strconv.Itoa(code)).Inc()
	m.seconds.WithLabelValues(name).Observe(took.Seconds())
}

func route(r *http.Request) string {
	switch method, path := r.Method, r.URL.Path; {
	case method == http.MethodPost && path == createPath:
		return "create"
	case method == http.MethodPost && path == createPath+"/retrieve":
		return "retrieve"
	case method == http.MethodPost && path == indexPath:
		return "search"
	case method == http.MethodGet && path == createPath:
		return "entry_by_index"
	case method == http.MethodGet && strings.HasPrefix(path, createPath+"/"):
		return "entry"
	case method == http.MethodGet && path == "/api/v1/log":
		return "log"
	case method == http.MethodGet && path == "/api/v1/log/publicKey":
		return "public_key"
	case method == http.MethodGet && path == "/api/v1/log/proof":
		return "proof"
	default:
		return "other"
	}
}
