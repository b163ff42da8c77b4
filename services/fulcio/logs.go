package fulcio

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/sigstore/fulcio/pkg/log"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Upstream logs through one zap logger for the process, coloured and on standard
// output. It is replaced, once, by a core that hands on to the service's logger.
var logTarget atomic.Pointer[slog.Logger]

func init() { log.Logger = zap.New(slogCore{}).Sugar() }

func routeLogs(logger *slog.Logger) { logTarget.Store(logger) }

// slogCore is a zapcore.Core. Requests are reported by caServer, with their
// outcome, so what upstream says of them is for debugging.
type slogCore struct{}

func (slogCore) Enabled(l zapcore.Level) bool {
	target := logTarget.Load()
	return l >= zapcore.WarnLevel && target != nil && target.Enabled(context.Background(), slog.LevelDebug)
}

func (c slogCore) With([]zapcore.Field) zapcore.Core { return c }

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (slogCore) Write(e zapcore.Entry, _ []zapcore.Field) error {
	if target := logTarget.Load(); target != nil {
		target.Debug("upstream reports", "detail", bounded(e.Message, maxRecorded))
	}
	return nil
}

func (slogCore) Sync() error { return nil }

// clientLog is the log of the CT client.
type clientLog struct{ logger *slog.Logger }

func (l clientLog) Printf(format string, args ...any) {
	l.logger.Warn("ct log keeps fulcio waiting", "detail", bounded(fmt.Sprintf(format, args...), maxRecorded))
}
