#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# What the recordings "edges" hold: run in a live guest (README.md), around mediator/live/comparison/edges.c.
/bin/edges params lists zero twice login refused
/bin/edges leave
/bin/edges killed
echo one; killall tee-supplicant; sleep 0.2
/bin/edges load & w=$!
sleep 0.2; tee-supplicant &
wait $w
echo two; killall tee-supplicant; sleep 0.2
/bin/edges load & w=$!
sleep 0.2; kill -9 $w; wait $w
sleep 0.1; tee-supplicant &
sleep 0.6
echo three; killall -STOP tee-supplicant
/bin/edges load & w=$!
sleep 0.2; killall -9 tee-supplicant; wait $w
tee-supplicant &
sleep 0.2
/bin/edges crowd
killall tee-supplicant; sleep 0.1; rmmod optee-rng; rmmod optee; insmod /lib/modules/optee.ko; rmmod optee
