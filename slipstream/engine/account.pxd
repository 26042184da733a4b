# What of account.py is C when it is compiled.
from slipstream.engine.context cimport RequestContext
from slipstream.engine.runtime cimport Active, Runtime
