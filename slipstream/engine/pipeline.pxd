# What of pipeline.py is C when it is compiled.
from slipstream.engine.context cimport RequestContext
from slipstream.engine.runtime cimport Active, Runtime
from slipstream.routing.table cimport Pool
from slipstream.wire.request cimport Call
