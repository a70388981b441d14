"""Users, clients, tokens and the OIDC provider on Keycloak's paths."""
