# What of attempt.py is C when it is compiled.
from slipstream.engine.context cimport RequestContext
from slipstream.engine.runtime cimport Active, Outbound, Runtime
from slipstream.resilience.bulkhead cimport Bulkhead
from slipstream.resilience.watchdog cimport Watchdog
from slipstream.wire.request cimport Call
from slipstream.engine.native cimport check_native, native_usage
