#!/bin/sh
# The story of make demo, in a whole machine: back up, damage, restore, compare. As root;
# demo.sh DIR restores below another directory than /srv.
set -eu

step() { # says what is done, and does it
	printf '\n$ %s\n' "$*"
	"$@"
}
checksums() { mariadb --batch --skip-column-names "$@" -e 'CHECKSUM TABLE shop.customers, shop.orders'; }

mariadb -e "CREATE OR REPLACE DATABASE shop;
CREATE TABLE shop.customers (id INT PRIMARY KEY, email VARCHAR(100));
INSERT INTO shop.customers SELECT seq, CONCAT('customer', seq, '@example.com') FROM mysql.seq_1_to_10000;
CREATE TABLE shop.orders (id INT PRIMARY KEY, customer INT, amount DECIMAL(10,2));
INSERT INTO shop.orders SELECT seq, 1 + seq % 10000, seq / 7 FROM mysql.seq_1_to_60000;"
before=$(checksums)

step respaldo check
step respaldo init --repository /srv/respaldo --password-file /etc/respaldo/password
step respaldo backup --max-lock 5s
step respaldo list

echo
echo "# An accident:"
step mariadb -e "UPDATE shop.customers SET email = 'nobody@example.com'; DROP TABLE shop.orders"

target=${1:-/srv}/restored-$(date +%s)
said=$(step respaldo restore latest --to "$target")
printf '%s\n' "$said"
# The options that it ends with, from [mysqld] to the next empty line.
options=$(printf '%s\n' "$said" | sed -n '/^\[mysqld\]$/,/^$/ { /^[a-z]/ s/^/--/p }')

echo
echo "# A second server is started on the restored files, and its tables are compared:"
socket=$target/demo.sock # only in there may the user mysql write
# shellcheck disable=SC2086 # one option a line, without blanks
mariadbd --no-defaults --user=mysql $options --skip-networking --socket="$socket" --pid-file="$target/demo.pid" --log-error="$target/demo.log" &
server=$!
trap 'kill $server 2>/dev/null; wait $server' EXIT
for _ in $(seq 60); do
	mariadb-admin --socket="$socket" ping >/dev/null 2>&1 && break
	sleep 1
done
after=$(checksums --socket="$socket")
printf '%s\n' "$after"
if [ "$before" != "$after" ]; then
	printf 'The restored tables differ from those before the accident:\n%s\n' "$before" >&2
	exit 1
fi
echo "All tables are as they were before the accident."
step respaldo status
