"""The ways from every released version of the gateway's tables to the newest, as alembic runs them."""
