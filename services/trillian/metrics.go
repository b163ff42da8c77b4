package trillian

import (
	"errors"

	"github.com/google/trillian/monitoring"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

const metricPrefix = "trillian_"

// metricFactory registers Trillian's metrics where the configuration says. Trillian's own factory knows only the
// process-wide registry.
type metricFactory struct{ registerer prometheus.Registerer }

func newMetricFactory(r prometheus.Registerer) monitoring.MetricFactory {
	if r == nil {
		return monitoring.InertMetricFactory{}
	}
	return metricFactory{r}
}

// register returns the collector that is registered under this name, which is another service's if there was one before.
func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	var registered prometheus.AlreadyRegisteredError
	if err := r.Register(c); errors.As(err, &registered) {
		if existing, ok := registered.ExistingCollector.(C); ok {
			return existing
		}
	}
	return c
}

func (f metricFactory) NewCounter(name, help string, labels ...string) monitoring.Counter {
	return counter{register(f.registerer, prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPrefix + name, Help: help}, labels))}
}

func (f metricFactory) NewGauge(name, help string, labels ...string) monitoring.Gauge {
	return gauge{register(f.registerer, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: metricPrefix + name, Help: help}, labels))}
}

func (f metricFactory) NewHistogram(name, help string, labels ...string) monitoring.Histogram {
	return f.NewHistogramWithBuckets(name, help, prometheus.ExponentialBuckets(0.0005, 2, 15), labels...)
}

func (f metricFactory) NewHistogramWithBuckets(name, help string, buckets []float64, labels ...string) monitoring.Histogram {
	return histogram{register(f.registerer, prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: metricPrefix + name, Help: help, Buckets: buckets}, labels))}
}

// read returns a metric's present value. Trillian asks for it in its own tests only.
func read(m prometheus.Metric, err error) *dto.Metric {
	out := new(dto.Metric)
	if err != nil || m.Write(out) != nil {
		return new(dto.Metric)
	}
	return out
}

type counter struct{ vec *prometheus.CounterVec }

func (c counter) Inc(labels ...string) { c.Add(1, labels...) }

func (c counter) Add(v float64, labels ...string) {
	if m, err := c.vec.GetMetricWithLabelValues(labels...); err == nil {
		m.Add(v)
	}
}

func (c counter) Value(labels ...string) float64 {
	return read(c.vec.GetMetricWithLabelValues(labels...)).GetCounter().GetValue()
}

type gauge struct{ vec *prometheus.GaugeVec }

func (g gauge) Inc(labels ...string) { g.Add(1, labels...) }

func (g gauge) Dec(labels ...string) { g.Add(-1, labels...) }

func (g gauge) Add(v float64, labels ...string) {
	if m, err := g.vec.GetMetricWithLabelValues(labels...); err == nil {
		m.Add(v)
	}
}

func (g gauge) Set(v float64, labels ...string) {
	if m, err := g.vec.GetMetricWithLabelValues(labels...); err == nil {
		m.Set(v)
	}
}

func (g gauge) Value(labels ...string) float64 {
	return read(g.vec.GetMetricWithLabelValues(labels...)).GetGauge().GetValue()
}

type histogram struct{ vec *prometheus.HistogramVec }

func (h histogram) Observe(v float64, labels ...string) {
	if m, err := h.vec.GetMetricWithLabelValues(labels...); err == nil {
		m.Observe(v)
	}
}

func (h histogram) Info(labels ...string) (uint64, float64) {
	o, err := h.vec.GetMetricWithLabelValues(labels...)
	m, ok := o.(prometheus.Metric)
	if !ok {
		return 0, 0
	}
	sample := read(m, err).GetHistogram()
	return sample.GetSampleCount(), sample.GetSampleSum()
}
