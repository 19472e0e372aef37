#!/bin/sh
# A process per call: the body on standard input.
exec wc -w
