// Package appliance is the composition root: the one place that knows every
// service. Init makes an instance, Open starts from one, Run serves it.
package appliance
