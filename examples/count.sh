#!/bin/sh
# Classic mode: a process per call, the body on standard input, the reply on standard output.
echo "$(wc -w) words by $Http_Method"
